"""A tensor as the matrices it is made of, and the same tensor in another weight format.

Both sources of weights, GGUF files and Hugging Face folders, hand tensors out as pieces: one
matrix, or one per expert. What reads them needs memory for a piece and the result, never for the
tensor as floats. No torch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ktransformers import _core
from ktransformers.errors import UserError

log = logging.getLogger("ktransformers")

# What a matrix becomes whose rows are no whole number of blocks, and what is tried next where a
# type is not good enough. Each step has more bits; f32 holds everything.
NARROW = {"q2_k": "q4_0", "q3_k": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
          "iq4_xs": "iq4_nl", "int4g128": "q5_0"}  # fmt: skip
HIGHER = {"q2_k": "q4_k", "q3_k": "q4_k", "int4g128": "q5_k", "iq4_xs": "q5_k", "iq4_nl": "q5_0",
          "q4_0": "q5_0", "q4_1": "q5_1", "q4_k": "q5_k", "q5_0": "q8_0", "q5_1": "q8_0",
          "q5_k": "q6_k", "q6_k": "q8_0", "mxfp4": "q5_0", "q8_0": "bf16", "f16": "bf16",
          "bf16": "f32"}  # fmt: skip
# Root mean square error of a tensor over its root mean square, beyond which a type is not good
# enough: about twice what Gaussian weights give (tests/python/test_quantize.py).
BOUNDS = {"q8_0": 0.012, "q6_k": 0.04, "q5_k": 0.07, "q5_0": 0.09, "q5_1": 0.08, "q4_k": 0.14,
          "q4_0": 0.18, "q4_1": 0.16, "iq4_nl": 0.16, "iq4_xs": 0.16, "int4g128": 0.20,
          "q3_k": 0.25, "q2_k": 0.5, "mxfp4": 0.25}  # fmt: skip
PLAIN = ("f32", "f16", "bf16")  # the others are quantised, and `quant: auto` leaves them alone
ROWS_AT_ONCE = 1 << 25  # values handed to the core in one call: 64 MiB of bf16

FACTS = {row["name"]: row for row in _core.formats()}


# Blocks that have a checkpoint's integer codes: what their scales may cost as binary16, and what
# is tried next. q8_0 then rounds the values anew.
KEPT_BOUND = 0.002
KEPT_HIGHER = {"q4_0": "q4_1", "q4_1": "q8_0", "q8_0": "q8_0"}


@dataclass(frozen=True)
class Piece:
    """A matrix. read(): its rows as stored, uint8; scales(): of format "fp8", one per block;
    packed(): of integer codes, in place of read(), what has them (packed.PackedRows)."""

    name: str
    format: str
    rows: int
    cols: int
    read: Callable[[], np.ndarray] | None
    scales: Callable[[], np.ndarray] | None = None
    packed: Callable[[], Any] | None = None

    @property
    def row_bytes(self) -> int:
        return self.cols if self.format == "fp8" else type_bytes(self.format, self.cols)


def stored_as(kind: str) -> str:
    """The format of the blocks: int4g128 has no format of its own, q4_0 holds its values."""
    return "q4_0" if kind == "int4g128" else kind


def type_bytes(kind: str, values: int) -> int:
    """Bytes of whole rows of so many values. Raises: UserError for a type nobody knows."""
    facts = FACTS.get(stored_as(kind))
    if facts is None:
        raise UserError(f"weight type '{kind}' is not one of {', '.join(FACTS)}")
    return values // facts["values_per_block"] * facts["bytes_per_block"]


def block_values(kind: str) -> int:
    return 128 if kind == "int4g128" else FACTS[kind]["values_per_block"]


def fitting_type(kind: str, cols: int) -> str:
    """`kind`, or the next type whose blocks divide rows of `cols` values."""
    while cols % block_values(kind):
        kind = NARROW.get(kind, "f16")
    return kind


@dataclass(frozen=True)
class Outcome:
    """What rounding a tensor cost. error: root mean square over the tensor's own. is_kept: its
    blocks have the codes that were stored."""

    type: str
    error: float
    not_finite: int
    out_of_range: int
    is_kept: bool = False

    def trouble(self) -> str:
        """Why the type is not good enough; "" where it is."""
        bound = KEPT_BOUND if self.is_kept else BOUNDS.get(self.type, np.inf)
        if self.out_of_range:
            return f"{self.out_of_range} values are out of its range"
        if self.error > bound:
            return f"its error is {self.error:.3f}, above {bound:g}"
        return ""


class Requantizer:
    """Pieces in, bytes of `kind` out, piece by piece; `outcome` once all are through. may_keep:
    blocks that can have a checkpoint's integer codes take them as they are."""

    def __init__(self, kind: str, threads: int, may_keep: bool = True):
        self.kind, self.threads, self.may_keep = kind, threads, may_keep
        self._error = self._power = 0.0
        self._not_finite = self._out_of_range = 0
        self._pieces = self._kept = 0

    def chunks(self, piece: Piece) -> Iterator[np.ndarray]:
        """The piece's rows in the new format, some rows at a time: uint8."""
        self._pieces += 1
        if piece.packed:
            yield from self._packed_chunks(piece)
            return
        data = piece.read()
        if piece.format == stored_as(self.kind) and self.kind != "int4g128":
            yield data.reshape(-1)
            return
        step = max(1, ROWS_AT_ONCE // piece.cols)
        if piece.format == "fp8":  # scales belong to whole blocks of rows
            step = max(128, step // 128 * 128)
        scales = piece.scales() if piece.scales else None
        for first in range(0, piece.rows, step):
            count = min(step, piece.rows - first)
            part = data.reshape(-1)[first * piece.row_bytes : (first + count) * piece.row_bytes]
            own = None if scales is None else scales[first // 128 : -(-(first + count) // 128)]
            out, facts = _core.requantize(
                part, piece.format, count, piece.cols, self.kind, scales=own, threads=self.threads
            )
            self._add(facts)
            yield out.reshape(-1)

    def _packed_chunks(self, piece: Piece) -> Iterator[np.ndarray]:
        matrix = piece.packed()
        keep = self.may_keep and matrix.keeps(self.kind)
        self._kept += keep
        step = max(64, ROWS_AT_ONCE // piece.cols // 64 * 64)  # words along rows hold eight
        for first in range(0, piece.rows, step):
            count = min(step, piece.rows - first)
            out, facts = matrix.convert(self.kind, first, count, keep, self.threads)
            self._add(facts)
            yield out.reshape(-1)

    def _add(self, facts: dict[str, Any]) -> None:
        self._error += facts["error"]
        self._power += facts["power"]
        self._not_finite += facts["not_finite"]
        self._out_of_range += facts["out_of_range"]

    @property
    def outcome(self) -> Outcome:
        error = (self._error / self._power) ** 0.5 if self._power else 0.0
        is_kept = 0 < self._pieces == self._kept
        return Outcome(self.kind, error, self._not_finite, self._out_of_range, is_kept)


def convert(
    name: str, pieces: Sequence[Piece], kind: str, threads: int, path: str
) -> tuple[np.ndarray, Outcome]:
    """All pieces in one array of blocks, in `kind` or, where that is not good enough, the next
    higher type that is; a line in the log says so, but for integer codes: of those there may be
    thousands of tensors, and whoever asked counts them.

    Raises: UserError for values that are not finite.
    """
    cols = pieces[0].cols
    asked = kind = fitting_type(kind, cols)
    may_keep = True
    while True:
        out = np.empty(sum(type_bytes(kind, p.rows * p.cols) for p in pieces), np.uint8)
        requantizer, at = Requantizer(kind, threads, may_keep), 0
        for piece in pieces:
            for chunk in requantizer.chunks(piece):
                out[at : at + chunk.size] = chunk
                at += chunk.size
        outcome = requantizer.outcome
        check_finite(name, outcome, path)
        trouble = outcome.trouble()
        if not trouble or kind not in HIGHER:
            break
        if outcome.is_kept:
            higher = KEPT_HIGHER[kind]
            may_keep = higher != kind
        else:
            higher = fitting_type(HIGHER[kind], cols)
        level = logging.INFO if pieces[0].packed else logging.WARNING
        log.log(level, "%s: %s instead of %s: %s", name, higher, kind, trouble)
        kind = higher
    if kind != asked:
        log.info("%s is kept as %s", name, kind)
    return out, outcome


def check_finite(name: str, outcome: Outcome, path: str) -> None:
    """Raises: UserError for a tensor with NaN or infinite values."""
    if outcome.not_finite:
        raise UserError(
            f"{path}: {name}: {outcome.not_finite} values are not finite; download it again"
        )
