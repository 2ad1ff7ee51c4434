"""transformers' Cache over the core's pages: its layers are views of sequences, not tensors.

Batches are rows of columns, as transformers pads them; a sequence holds only the columns that are
no padding. The core writes the pages itself; modules that run in torch call `update`.
"""

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ktransformers.errors import UserError
from ktransformers.operators.engine import Engine


class PagedLayer(CacheLayerMixin):
    """One layer's view."""

    def __init__(self, cache: "PagedCache", index: int):
        super().__init__()
        self._cache = weakref.ref(cache)  # pages are given back as soon as the cache is dropped
        self.index = index
        self.is_initialized = True

    @property
    def cache(self) -> "PagedCache":
        return self._cache()

    def lazy_initialization(self, key_states, value_states) -> None:
        """Nothing to do: pages are taken as positions come."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """See PagedCache.update."""
        return self.cache.update(key_states, value_states, self.index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()

    def get_max_length(self) -> int:
        return self.cache.engine.cache_lens

    def reset(self) -> None:
        self.cache.crop(0)


@dataclass
class NewRows:
    """Rows of a forward, in the order of its columns. flat: [m] places in batch * length."""

    flat: np.ndarray
    position: np.ndarray
    sequence: np.ndarray


class PagedCache(Cache):
    """The sequences of one batch.

    held: bool [batch, columns], which columns evaluated so far are no padding. The batch is that of
    the first forward. layout: of the step under way (torch_layers.StepLayout), where `update`
    finds the places of its rows; None outside a step.
    """

    def __init__(self, engine: Engine, sequences: list | None = None, layout=None):
        super().__init__(layers=[PagedLayer(self, i) for i in range(engine.kv.num_layers)])
        self.engine = engine
        self.layout = layout
        self.sequences: list = sequences or []
        self.held = np.zeros((len(self.sequences), 0), bool)
        self.shift: np.ndarray | None = None  # of a caller's position ids against ours
        self.lost: str | None = None  # why there is nothing to go on from

    # ---- what a forward needs ----

    def new_rows(self, batch: int, length: int, mask, position_ids) -> NewRows:
        """Places and positions of `length` more columns.

        mask: [batch, columns so far + length] or None; position_ids: [batch or 1, length] or None,
        which must count up by one where the mask lets them be seen.
        Raises: UserError for a mask or positions that cannot be honoured.
        """
        if self.lost:
            raise UserError(self.lost)
        if not self.sequences:
            self.sequences = [self.engine.kv.make_sequence() for _ in range(batch)]
            self.held = np.zeros((batch, 0), bool)
        if len(self.sequences) != batch:
            raise UserError(
                f"past_key_values holds {len(self.sequences)} sequences, the batch has {batch}"
            )
        valid = self._valid(mask, length)
        before = np.array([sequence.length for sequence in self.sequences])
        position = before[:, None] + np.cumsum(valid, axis=1) - 1
        if position_ids is not None:
            self._check_positions(position_ids, position, valid)
        flat = np.flatnonzero(valid)
        return NewRows(
            flat, position.reshape(-1)[flat].astype(np.int32), (flat // length).astype(np.int32)
        )

    def append(self, rows: NewRows, length: int) -> None:
        """Counts the columns of a forward whose positions the sequences now hold."""
        new = np.zeros((len(self.sequences), length), bool)
        new.reshape(-1)[rows.flat] = True
        self.held = np.concatenate([self.held, new], axis=1)

    def _valid(self, mask, length: int) -> np.ndarray:
        batch, seen = self.held.shape
        if mask is None:
            return np.ones((batch, length), bool)
        if isinstance(mask, dict) or mask.dim() != 2:
            raise UserError("attention_mask: only [batch, columns] masks of 0 and 1 are supported")
        wanted = [batch, seen + length]
        if list(mask.shape) != wanted:
            raise UserError(
                f"attention_mask: shape {list(mask.shape)}; {wanted} is needed: the columns in "
                "past_key_values and the new ones"
            )
        mask = mask.cpu().bool().numpy()
        hidden = self.held & ~mask[:, :seen]
        if hidden.any():
            row, column = np.argwhere(hidden)[0]
            raise UserError(
                f"attention_mask: hides column {column} of sequence {row}, which past_key_values "
                "holds; crop the cache instead"
            )
        return mask[:, seen:]

    def _check_positions(self, given, position: np.ndarray, valid: np.ndarray) -> None:
        given = given.cpu().numpy()
        if given.shape[-1] != position.shape[1] or given.ndim != 2:
            raise UserError(f"position_ids: shape {list(given.shape)}; one per token is needed")
        apart = np.where(valid, given - position, 0)
        # A whole sequence may be shifted: rotary positions matter by their differences only.
        first = np.where(valid.any(axis=1), apart[np.arange(len(apart)), valid.argmax(axis=1)], 0)
        shift = first if self.shift is None or not self.held.any() else self.shift
        if (np.where(valid, apart - shift[:, None], 0) != 0).any():
            raise UserError(
                "position_ids: must count up by one from token to token; leave them out, and hide "
                "padding with attention_mask"
            )
        self.shift = shift

    # ---- transformers' interface ----

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        """Writes a step's keys and values to the pages and returns those of all positions.

        key_states, value_states: [batch, heads, new, dim] -> [batch, heads, positions, dim], zeros
        behind the end of a shorter sequence.
        Raises: UserError outside a step.
        """
        if self.layout is None:
            raise UserError(
                "past_key_values: keys and values are written while the model runs; call the model"
            )
        latent = self.engine.widths[layer_idx][1] == 0  # MLA: one vector holds both
        total = self.layout.total
        keys = key_states.new_zeros(*key_states.shape[:2], total, key_states.shape[-1])
        values = value_states.new_zeros(*value_states.shape[:2], total, value_states.shape[-1])
        for b, sequence in enumerate(self.sequences):
            start, count = self.layout.start[b], self.layout.count[b]
            k, v = _rows(key_states[b], count), _rows(value_states[b], count)
            if latent:
                k, v = np.concatenate([k, v], axis=1), np.zeros((count, 0), np.float32)
            sequence.write(layer_idx, int(start), k, v)
            end = int(start + count)
            k, v = (torch.from_numpy(part) for part in sequence.read(layer_idx, end))
            if latent:
                width = keys.shape[1] * keys.shape[3]
                k, v = k[:, :width], k[:, width:]
            keys[b, :, :end] = k.reshape(end, keys.shape[1], -1).transpose(0, 1)
            values[b, :, :end] = v.reshape(end, values.shape[1], -1).transpose(0, 1)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.layout.start.max()) if self.layout else self.held.shape[1]

    def crop(self, max_length: int) -> None:
        """Forgets columns from `max_length` on; a negative number drops that many."""
        seen = self.held.shape[1]
        if max_length < 0:
            max_length = max(seen + max_length, 0)
        if max_length >= seen:
            return
        self.held = self.held[:, :max_length].copy()
        for sequence, columns in zip(self.sequences, self.held, strict=True):
            sequence.truncate(int(columns.sum()))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Makes sequence i a copy of sequence beam_idx[i]; pages are shared until written."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        chosen = [int(i) for i in indices]
        self.sequences = [self.sequences[i].fork() for i in chosen]
        self.held = self.held[chosen]
        self.shift = None if self.shift is None else self.shift[chosen]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.sequences)).repeat_interleave(repeats))

    def reset(self) -> None:
        self.crop(0)

    def __deepcopy__(self, memo) -> "PagedCache":
        """Forks of the sequences: they share pages until one of them writes."""
        copy = PagedCache(self.engine, [sequence.fork() for sequence in self.sequences])
        copy.held, copy.lost = self.held.copy(), self.lost
        copy.shift = None if self.shift is None else self.shift.copy()
        return copy

    def __reduce_ex__(self, protocol):
        raise UserError("past_key_values: lives in the model's pages and cannot be pickled")


def _rows(states: torch.Tensor, count: int) -> np.ndarray:
    """[heads, new, dim] -> float32 [count, heads * dim]."""
    rows = states[:, :count].transpose(0, 1).reshape(count, -1)
    return rows.detach().float().contiguous().numpy()
