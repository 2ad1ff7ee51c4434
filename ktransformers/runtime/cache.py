"""transformers' Cache over the core's pages: its layers are views of sequences, not tensors.

Batches are rows of columns, as transformers pads them; a sequence holds only the columns that are
no padding. Operators write the pages themselves; modules that run in torch call `update`.
"""

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ktransformers.errors import UserError
from ktransformers.operators.engine import Engine, Rows


class PagedLayer(CacheLayerMixin):
    """One layer's view."""

    def __init__(self, cache: "PagedCache", index: int):
        super().__init__()
        self.cache, self.index = cache, index
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states) -> None:
        """Nothing to do: pages are taken as positions come."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """keys, values: [batch, heads, new, dim] -> all positions, [batch, heads, columns, dim]."""
        return self.cache.write(self.index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.columns_seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.columns_seen

    def get_max_length(self) -> int:
        return self.cache.engine.cache_lens

    def reset(self) -> None:
        self.cache.crop(0)


class PagedCache(Cache):
    """Sequences of one batch.

    columns_seen: columns evaluated so far, padding included. columns[b]: which of them the
    positions of sequence b stand in.
    """

    def __init__(self, engine: Engine, batch: int, sequences: list | None = None):
        super().__init__(layers=[PagedLayer(self, i) for i in range(engine.kv.num_layers)])
        self.engine = engine
        self.sequences = sequences or [engine.kv.make_sequence() for _ in range(batch)]
        self.columns_seen = 0
        self.columns: list[list[int]] = [[] for _ in self.sequences]
        self._new: list[np.ndarray] = []

    def rows_for(self, mask: torch.Tensor | None, length: int, is_prompt: bool, marks) -> Rows:
        """The rows of a forward over `length` new columns; extends the sequences by them.

        mask: [batch, columns_seen + length] or None; marks(positions, is_prompt) -> rounding.
        """
        batch = len(self.sequences)
        valid = np.ones((batch, length), bool)
        if mask is not None:
            if mask.dim() != 2 or mask.shape[0] != batch:
                raise UserError(
                    f"attention_mask: shape {list(mask.shape)}, a mask of {batch} rows is needed"
                )
            valid = mask[:, -length:].bool().numpy()
        position = np.zeros((batch, length), np.int32)
        for b, sequence in enumerate(self.sequences):
            count = int(valid[b].sum())
            position[b, valid[b]] = sequence.length + np.arange(count, dtype=np.int32)
        rounding = np.asarray(marks(position.reshape(-1), is_prompt))
        flat = valid.reshape(-1)
        sequence_of = np.repeat(np.arange(batch, dtype=np.int32), length)
        self._new = [np.flatnonzero(row) for row in valid]
        return Rows(
            rounding=rounding,
            valid=np.flatnonzero(flat),
            position=position.reshape(-1)[flat],
            sequence=sequence_of[flat],
            sequences=self.sequences,
        )

    def extend(self) -> None:
        """Makes the rows of `rows_for` part of their sequences (module-by-module mode)."""
        for sequence, new in zip(self.sequences, self._new, strict=True):
            sequence.extend(sequence.length + len(new))

    def finish(self, length: int) -> None:
        """Counts the columns of a forward that has ended."""
        for columns, new in zip(self.columns, self._new, strict=True):
            columns += (self.columns_seen + new).tolist()
        self.columns_seen += length

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor):
        """See PagedLayer.update."""
        batch, heads, length, _ = keys.shape
        all_keys, all_values = [], []
        for b, sequence in enumerate(self.sequences):
            new = self._new[b]
            k = keys[b][:, new].transpose(0, 1).reshape(len(new), -1).float().contiguous().numpy()
            v = values[b][:, new].transpose(0, 1).reshape(len(new), -1).float().contiguous().numpy()
            latent = keys.shape[-1] if self._is_latent(layer) else None
            if latent:  # MLA: the rotated key goes behind the latent, values are a prefix
                k, v = np.concatenate([k, v], axis=1), np.zeros((len(new), 0), np.float32)
            sequence.write(layer, sequence.length - len(new), k, v)
            k, v = sequence.read(layer, sequence.length)
            if latent:
                k, v = k[:, :latent], k[:, latent:]
            where = [*self.columns[b], *(self.columns_seen + new).tolist()]
            total = self.columns_seen + length
            all_keys.append(_spread(k, where, total, heads, keys.shape[-1]))
            all_values.append(_spread(v, where, total, heads, values.shape[-1]))
        return torch.stack(all_keys).to(keys.dtype), torch.stack(all_values).to(values.dtype)

    def _is_latent(self, layer: int) -> bool:
        return self.engine.widths[layer][1] == 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns_seen

    def crop(self, max_length: int) -> None:
        """Forgets columns from `max_length` on; a negative number drops that many."""
        if max_length < 0:
            max_length = max(self.columns_seen + max_length, 0)
        if max_length >= self.columns_seen:
            return
        for b, sequence in enumerate(self.sequences):
            self.columns[b] = [c for c in self.columns[b] if c < max_length]
            sequence.truncate(len(self.columns[b]))
        self.columns_seen = max_length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        chosen = [int(i) for i in indices]
        self.sequences = [self.sequences[i].fork() for i in chosen]
        self.columns = [list(self.columns[i]) for i in chosen]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.sequences)).repeat_interleave(repeats))

    def reset(self) -> None:
        self.crop(0)


def _spread(rows: np.ndarray, where: list[int], total: int, heads: int, dim: int) -> torch.Tensor:
    """[positions, heads * dim] -> [heads, total, dim] with zeros in padding columns."""
    out = np.zeros((total, heads, dim), np.float32)
    out[where] = rows.reshape(-1, heads, dim)
    return torch.from_numpy(out).transpose(0, 1)
