"""Layers that run in torch: transformers' forward on the rows of a step, over the core's pages.

A step mixes rows of any sequences; a transformers layer wants a batch [sequences, length, hidden].
`StepLayout` pads the one to the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch

from ktransformers import _core
from ktransformers.operators.engine import Engine, Rows
from ktransformers.runtime.cache import PagedCache


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Holds torch to one thread: the cores belong to the engine's workers while a step runs."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class StepLayout:
    """Places of a step's m rows in a batch [b, t] of the sequences they belong to.

    chosen: [b] indices of sequences; start, count: [b] position of the first row, and rows;
    flat: [m] place in b * t; total: positions of the longest sequence after the step.
    """

    def __init__(self, position: np.ndarray, sequence: np.ndarray):
        self.position = position.astype(np.int64)
        self.chosen, self.row_of = np.unique(sequence, return_inverse=True)
        self.count = np.bincount(self.row_of)
        self.start = np.full(len(self.chosen), np.iinfo(np.int64).max)
        np.minimum.at(self.start, self.row_of, self.position)
        self.shape = (len(self.chosen), int(self.count.max()))
        self.flat = self.row_of * self.shape[1] + self.position - self.start[self.row_of]
        self.total = int((self.start + self.count).max())

    def spread(self, rows: np.ndarray, fill=0) -> np.ndarray:
        """[m, ...] -> [b, t, ...]."""
        out = np.full((self.shape[0] * self.shape[1], *rows.shape[1:]), fill, rows.dtype)
        out[self.flat] = rows
        return out.reshape(*self.shape, *rows.shape[1:])

    def gather(self, batch: np.ndarray) -> np.ndarray:
        """[b, t, ...] -> [m, ...]."""
        return batch.reshape(-1, *batch.shape[2:])[self.flat]

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 [b, t]; padding stands at position 0, so that it sees something."""
        return torch.from_numpy(self.spread(self.position))

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """Additive [b, 1, t, total]; None where every row sees every position."""
        if self.shape[1] == 1 and (self.start + self.count == self.total).all():
            return None
        visible = torch.arange(self.total) <= self.positions[:, None, :, None]
        return torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))


class TorchLayers:
    """transformers' decoder layers by index. Holds no reference to the model as a whole."""

    def __init__(self, model, engine: Engine):
        self.layers = list(model.model.layers)
        self.rotary = model.model.rotary_emb
        self.engine = engine

    def run(self, index: int, hidden: np.ndarray, layout: StepLayout, is_prompt, sequences) -> None:
        """hidden: float32 [m, hidden_size], changed in place; the sequences hold the rows already.

        is_prompt: uint8 [m]. sequences: those the step's sequence numbers mean.
        """
        chosen = [sequences[i] for i in layout.chosen]
        cache = PagedCache(self.engine, chosen, layout)
        marks = self._rounding(layout, np.asarray(is_prompt))
        x = torch.from_numpy(layout.spread(hidden))
        self.engine.rows = Rows(
            layout.spread(marks, fill=marks[0]).reshape(-1), layout.flat,
            layout.position.astype(np.int32), layout.row_of.astype(np.int32), chosen,
        )  # fmt: skip
        try:
            with one_torch_thread(), torch.no_grad():
                out = self.layers[index](
                    x,
                    attention_mask=layout.mask,
                    position_embeddings=self._angles(x, layout),
                    position_ids=layout.positions,
                    past_key_values=cache,
                    use_cache=True,
                )
                out = out[0] if isinstance(out, tuple) else out
                hidden[:] = layout.gather(out.float().numpy())
        finally:
            self.engine.rows = None

    def callback(self, index: int):
        """The function of a core's callback node that runs layer `index`."""

        def run(hidden, position, sequence, is_prompt, sequences) -> None:
            self.run(index, hidden, StepLayout(position, sequence), is_prompt, sequences)

        return run

    def _angles(self, x, layout: StepLayout):
        if not hasattr(layout, "angles"):
            layout.angles = self.rotary(x, position_ids=layout.positions)
        return layout.angles

    def _rounding(self, layout: StepLayout, is_prompt: np.ndarray) -> np.ndarray:
        marks = np.empty(len(layout.position), np.uint8)
        for kind in (False, True):
            where = is_prompt.astype(bool) == kind
            position = layout.position[where].astype(np.int32)
            marks[where] = _core.rounding(self.engine.arithmetic, position, kind)
        return marks


class ModuleProgram:
    """Runs a model module by module behind the interface of the core's Decoder."""

    def __init__(self, model, engine: Engine):
        self.engine = engine
        self.torch_layers = TorchLayers(model, engine)
        self.embed, self.norm, self.head = model.model.embed_tokens, model.model.norm, model.lm_head
        self.vocab_size = model.config.vocab_size

    def step(self, token, position, sequence, is_prompt, sequences, logits_rows, want_hidden=False):
        """See _core.Decoder.step: (logits [logits_rows, vocab], hidden [m, hidden] or None).

        Raises: ValueError for tokens out of range and a full cache; sequences keep their length.
        """
        token, position = np.asarray(token, np.int64), np.asarray(position, np.int32)
        sequence = np.asarray(sequence, np.int32)
        if not ((token >= 0) & (token < self.vocab_size)).all():
            wrong = int(token[(token < 0) | (token >= self.vocab_size)][0])
            raise ValueError(f"token id {wrong} is outside the vocabulary of {self.vocab_size}")
        before = [one.length for one in sequences]
        layout = StepLayout(position, sequence)
        try:
            for chosen, count in zip(layout.chosen, layout.count, strict=True):
                sequences[chosen].extend(before[chosen] + int(count))
            return self._run(token, layout, is_prompt, sequences, logits_rows, want_hidden)
        except BaseException:
            for one, length in zip(sequences, before, strict=True):
                one.truncate(length)
            raise

    @torch.no_grad()
    def _run(self, token, layout, is_prompt, sequences, logits_rows, want_hidden):
        with one_torch_thread():
            hidden = np.array(self.embed(torch.from_numpy(token)).float().numpy())
            for index in range(len(self.torch_layers.layers)):
                self.torch_layers.run(index, hidden, layout, is_prompt, sequences)
            normed = self.norm(torch.from_numpy(hidden)) if want_hidden else None
            last = self.norm(torch.from_numpy(hidden[list(logits_rows)]))
            logits = np.zeros((0, self.vocab_size), np.float32)
            if len(last):
                logits = self.head(last).float().numpy()
        return logits, normed.float().numpy() if want_hidden else None
