"""Matrices in integer codes among a folder's tensors, each put together from its parts. No torch.

`gather` replaces "….qweight", "….qzeros", "….scales", "….g_idx" (GPTQ, AWQ) or "….weight_packed",
"….weight_scale", … (compressed-tensors) by one tensor "….weight", whose shapes are checked before
anything is read. csrc/quant/packed.h describes the layouts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint.packed_config import BITS, Scheme
from ktransformers.checkpoint.safetensors import SafetensorsFolder, StoredTensor
from ktransformers.errors import UserError

# What the parts of a matrix are called, by layout.
_WORDS = {"codes": "qweight", "zeros": "qzeros", "scales": "scales", "groups": "g_idx"}
_ROWS = {
    "codes": "weight_packed", "zeros": "weight_zero_point", "scales": "weight_scale",
    "groups": "weight_g_idx", "shape": "weight_shape",
}  # fmt: skip
PARTS = {"gptq": _WORDS, "awq": _WORDS, "rows": _ROWS}
SCALES = ("f16", "bf16", "f32")
BLOCK = 32  # values of the GGUF types that can have the codes as they are


@dataclass
class PackedTensor:
    """A matrix [n, k]: value = scale * (code - zero). Stands among StoredTensors.

    is_symmetric: all zero points are said to be 2^(bits - 1). is_ordered: a column may be in any
    group. parts: the stored tensors by role.
    """

    name: str
    shape: tuple[int, int]
    layout: str
    bits: int
    groups: int
    is_symmetric: bool
    zero_offset: int
    is_ordered: bool
    parts: dict[str, StoredTensor]
    folder: SafetensorsFolder = field(repr=False)
    _group_of: np.ndarray | None = field(default=None, repr=False)

    @property
    def dtype(self) -> str:
        return f"int{self.bits}"

    @property
    def file(self) -> int:
        return self.parts["codes"].file

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def drop(self) -> None:
        """As SafetensorsFolder.drop: of every part."""
        for part in self.parts.values():
            self.folder.drop(part.name)

    def kept_type(self) -> str | None:
        """The GGUF type that can have the codes as they are, as far as it can be said before they
        are read. None: there is none, and the values have to be rounded."""
        if self.shape[1] // self.groups % BLOCK or self.group_of(self.is_ordered) is not None:
            return None
        if self.bits == 4:
            return "q4_0" if self.is_symmetric else "q4_1"
        return "q8_0" if self.is_symmetric else None

    def keeps(self, kind: str) -> bool:
        """Whether to try and keep the codes in blocks of that type."""
        return kind in ("q4_1", "q8_0") or (kind == "q4_0" and self.is_symmetric)

    def group_of(self, reads: bool = True) -> np.ndarray | None:
        """[k] int32, the group of each column; None where groups are runs of columns, and, without
        `reads`, where nothing says they are not. Raises: UserError for one there is not."""
        if "groups" not in self.parts or not (reads or self._group_of is not None):
            return None
        if self._group_of is None:
            part = self.parts["groups"]
            found = self.folder.bytes_of(part.name).view("<i4")
            bad = np.flatnonzero((found < 0) | (found >= self.groups))
            if bad.size:
                raise self._fail(
                    part, f"puts column {bad[0]} into group {found[bad[0]]} of {self.groups}"
                )
            runs = np.arange(found.size, dtype=np.int64) * self.groups // found.size
            same = self.shape[1] % self.groups == 0 and np.array_equal(found, runs)
            self._group_of = found[:0] if same else found.astype(np.int32)
        return self._group_of if self._group_of.size else None

    def open(self, rows: np.ndarray | None = None) -> "PackedRows":
        """The matrix for reading; rows [n]: where each of its rows is stored. Raises: UserError."""
        self._check_shape()
        data = {role: self.folder.bytes_of(part.name) for role, part in self.parts.items()}
        try:
            core = _core.PackedMatrix(
                layout=self.layout, bits=self.bits, n=self.shape[0], k=self.shape[1],
                groups=self.groups, codes=data["codes"], scales=data["scales"],
                scale_type=self.parts["scales"].dtype, zeros=data.get("zeros"),
                zero_offset=self.zero_offset, group_of=self.group_of(), rows=rows,
            )  # fmt: skip
        except ValueError as error:
            raise self._fail(self.parts["codes"], str(error)) from error
        return PackedRows(core, self)

    def _check_shape(self) -> None:
        if part := self.parts.get("shape"):
            kind = "<i8" if part.dtype == "i64" else "<i4"
            said = self.folder.bytes_of(part.name).view(kind).tolist()
            if said != list(self.shape):
                raise self._fail(part, f"says {said}, but the codes are of {list(self.shape)}")

    def _fail(self, part: StoredTensor, what: str) -> UserError:
        return bad(self.folder, part, what)


class PackedRows:
    """An open matrix; what is wrong with its values is told with file and tensor."""

    def __init__(self, core: Any, tensor: PackedTensor):
        self._core, self._tensor = core, tensor

    def keeps(self, kind: str) -> bool:
        return self._tensor.keeps(kind) and self._core.can_keep(kind)

    def convert(self, kind: str, first: int, count: int, keep: bool, threads: int) -> tuple:
        """Rows as `kind`: (uint8 [count, row bytes], facts). Raises: UserError."""
        return self._told(lambda: self._core.convert(kind, first, count, keep, threads))

    def to_floats(self, first: int, count: int) -> np.ndarray:
        """Rows as float32 [count, k]. Raises: UserError."""
        return self._told(lambda: self._core.to_floats(first, count))

    def _told(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except _core.FormatError as error:
            tensor = self._tensor
            raise bad(tensor.folder, tensor.parts["scales"], str(error)) from error


def bad(folder: SafetensorsFolder, part: StoredTensor, what: str) -> UserError:
    return UserError(f"{folder.paths[part.file]}: {part.name}: {what}; download it again")


def gather(folder: SafetensorsFolder, scheme: Scheme) -> None:
    """Puts the folder's matrices together. Raises: UserError naming file, tensor and shape."""
    roles = {suffix: role for role, suffix in PARTS[scheme.layout].items()}
    modules: dict[str, dict[str, StoredTensor]] = {}
    made: dict[str, Any] = {}
    for name, tensor in folder.tensors.items():
        module, _, suffix = name.rpartition(".")
        if suffix not in roles:
            made[name] = tensor
            continue
        modules.setdefault(module, {})[roles[suffix]] = tensor
        made[f"{module}.weight"] = None  # in the place of its first part
    for module, parts in modules.items():
        if f"{module}.weight" in folder.tensors:
            raise bad(folder, next(iter(parts.values())), "is there beside a plain weight")
        made[f"{module}.weight"] = _matrix(folder, scheme, module, parts)
    folder.tensors = made


def _matrix(
    folder: SafetensorsFolder, scheme: Scheme, module: str, parts: dict[str, StoredTensor]
) -> PackedTensor:
    names = PARTS[scheme.layout]
    some = next(iter(parts.values()))

    def need(role: str, why: str = "") -> StoredTensor:
        if role not in parts:
            raise bad(folder, some, f"has no {names[role]} beside it{why}")
        return parts[role]

    codes, scales = need("codes"), need("scales")
    by_row = scheme.layout == "rows"
    if by_row:
        need("shape")
        if scheme.bits is not None and not scheme.is_symmetric:
            need("zeros", ", and config.json says symmetric: false")
    else:
        need("zeros")
    if scheme.is_ordered and scheme.group:
        said = "actorder: group" if by_row else "desc_act: true"
        need("groups", f", and config.json says {said}")
    for role, kinds in {"codes": ("i32",), "zeros": ("i32",), "groups": ("i32",),
                        "scales": SCALES, "shape": ("i64", "i32")}.items():  # fmt: skip
        if role in parts and parts[role].dtype not in kinds:
            raise bad(folder, parts[role], f"has type {parts[role].dtype}, not {kinds[0]}")
    for part in (codes, scales):
        if len(part.shape) != 2 or 0 in part.shape:
            raise bad(folder, part, f"has shape {list(part.shape)}, a matrix is needed")
    n, k, bits = _size(folder, scheme, parts)
    groups = scales.shape[1 if by_row else 0]
    if scheme.group is not None:
        group = scheme.group or k
        if k % group:
            raise bad(folder, codes, f"has {k} columns, which groups of {group} do not divide")
        if groups != k // group:
            raise bad(
                folder, scales,
                f"has {groups} groups; {k} columns in groups of {group} have {k // group}",
            )  # fmt: skip
    elif groups > k or k % groups:
        raise bad(folder, scales, f"has {groups} groups, which do not divide {k} columns")
    rows, columns = -(-n * bits // 32), -(-k * bits // 32)  # words of a line of n or k
    wanted = {
        "rows": {"codes": (n, columns), "scales": (n, groups), "zeros": (rows, groups)},
        "gptq": {"codes": (columns, n), "scales": (groups, n), "zeros": (groups, rows)},
        "awq": {"codes": (k, rows), "scales": (groups, n), "zeros": (groups, rows)},
    }[scheme.layout] | {"groups": (k,), "shape": (2,)}
    for role, part in parts.items():
        if part.shape != wanted[role]:
            raise bad(
                folder, part,
                f"has shape {list(part.shape)}, but {list(wanted[role])} belongs to a matrix of "
                f"{n} x {k} in {bits} bits and {groups} groups",
            )  # fmt: skip
    is_symmetric = "zeros" not in parts if by_row else scheme.is_symmetric
    return PackedTensor(
        f"{module}.weight", (n, k), scheme.layout, bits, groups, is_symmetric, scheme.zero_offset,
        scheme.is_ordered, parts, folder,
    )  # fmt: skip


def _size(
    folder: SafetensorsFolder, scheme: Scheme, parts: dict[str, StoredTensor]
) -> tuple[int, int, int]:
    """(n, k, bits): of config.json, or of the parts where modules differ."""
    codes, scales, bits = parts["codes"], parts["scales"], scheme.bits
    if scheme.layout == "awq":
        return scales.shape[1], codes.shape[0], 4
    if scheme.layout == "gptq":
        n = scales.shape[1]
        zeros = parts["zeros"]
        if bits is None:
            bits = 32 * zeros.shape[-1] // n
            if bits not in BITS:
                raise bad(folder, zeros, f"has {zeros.shape[-1]} words for {n} rows, which is "
                          "neither 4 nor 8 bits")  # fmt: skip
        k = codes.shape[0] * 32 // bits
        if (groups := parts.get("groups")) and len(groups.shape) == 1:
            k = groups.shape[0]
        return n, k, bits
    n, words = codes.shape
    if bits is not None and scheme.group:
        return n, scales.shape[1] * scheme.group, bits
    if bits is not None:
        return n, words * 32 // bits, bits
    part = parts["shape"]
    if part.shape != (2,):
        raise bad(folder, part, f"has shape {list(part.shape)}, not [2]")
    said = folder.bytes_of(part.name).view("<i8" if part.dtype == "i64" else "<i4").tolist()
    for bits in BITS:
        if said[0] == n and said[1] > 0 and -(-said[1] * bits // 32) == words:
            return n, said[1], bits
    raise bad(folder, part, f"says {said}; {list(codes.shape)} words are that in neither 4 nor 8 "
              "bits")  # fmt: skip
