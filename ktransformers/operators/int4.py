"""int4 on a card: which form a matrix gets there, and its bytes. Imports no torch.

A rule says `quant: int4`, or how many values share a scale: int4g32, int4g64, int4g128. Groups of
32 have an offset as well. Plain int4 keeps the codes of types that have such groups, and rounds
the others 64 to a scale. csrc/cuda/int4_gemm/placed.h does it; plans are made without any CUDA
library, so tests/python/test_int4_forms.py holds what is said here to it.
"""

from dataclasses import dataclass

from ktransformers.checkpoint.pieces import FACTS

# Types whose codes are kept in groups of 32, and whether they have an offset.
KEPT = {"q4_0": False, "q4_1": True, "q4_k": True}
GROUPS = {"int4": 0, "int4g32": 32, "int4g64": 64, "int4g128": 128}
ONLY_CARDS = ("int4", "int4g32", "int4g64")  # int4g128 means something on the CPU too
STRIP, DEEP = 64, 64  # rows are stored in strips; columns must be a multiple


@dataclass(frozen=True)
class Form:
    """group: values that share a scale; has_offsets: and an offset, both 16-bit floats."""

    group: int
    has_offsets: bool

    @property
    def name(self) -> str:
        return f"int4g{self.group}"

    def nbytes(self, rows: int, cols: int) -> int:
        """On a card."""
        values = -(-rows // STRIP) * STRIP * cols
        return values // 2 + values // self.group * (4 if self.has_offsets else 2)


def form_of(quant: str, stored: str) -> Form:
    """Of a matrix stored as a GGUF type, for one of GROUPS."""
    group = GROUPS[quant] or (32 if stored in KEPT else 64)
    return Form(group, group == 32 and KEPT.get(stored, True))


def trouble(quant: str, stored: str, cols: int) -> str:
    """Why a matrix cannot have that form; "" where it can."""
    if stored not in FACTS:
        return f"{quant} cannot be made of {stored}"
    group = form_of(quant, stored).group
    deep = max(DEEP, group)
    if cols % deep:
        return f"{quant} needs in_features that are a multiple of {deep}, not {cols}"
    return ""


@dataclass
class Totals:
    """What rounding cost all matrices of a model. error: of each, squared and relative to its own
    values, times their number: no matrix hides behind one with larger values."""

    matrices: int = 0
    nbytes: int = 0
    values: int = 0
    error: float = 0.0

    def add(self, nbytes: int, values: int, error: float, power: float) -> None:
        """error, power: sums of squares of the differences and of the values."""
        self.matrices += 1
        self.nbytes += nbytes
        self.values += values
        self.error += values * error / power if power else 0.0

    def line(self) -> str:
        """For the user, once a model is loaded."""
        relative = self.error / self.values
        cost = (
            "their codes are the file's"
            if relative < 1e-6
            else f"rounding them again costs {100 * relative**0.5:.2g} % of their rms "
            f"(NMSE {relative:.1e})"
        )
        return (
            f"int4 on cards: {self.matrices} matrices, {self.nbytes / 2**30:.2f} GiB, "
            f"{8 * self.nbytes / self.values:.2f} bits a weight; {cost}"
        )
