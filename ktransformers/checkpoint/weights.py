"""A model's weights by transformers name: file bytes for operators, floats for torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ktransformers.checkpoint.naming import TensorSource, tensor_source
from ktransformers.errors import UserError

EXTRA_TENSORS = {"rope_freqs.weight"}
_BLOCK = re.compile(r"blk\.(?P<block>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Blocks:
    """A matrix as the file has it. data: uint8, rows * row bytes, C order."""

    data: np.ndarray
    format: str
    rows: int
    cols: int
    name: str


@dataclass(frozen=True)
class Stack:
    """Matrices of one shape, one after another. data: uint8, count * rows * row bytes."""

    data: np.ndarray
    format: str
    count: int
    rows: int
    cols: int
    name: str


class Weights:
    """Parameters of one model.

    gguf: the open file. config: fields of the transformers configuration. bytes_bound: of the file,
    handed out so far.
    """

    def __init__(self, gguf, config: dict):
        self.gguf = gguf
        self.config = config
        self.bytes_bound = 0
        self._used: set[str] = set()

    def unused(self) -> list[str]:
        """Tensors of the file that no module took, but for those that are known to be extra."""
        layers = self.config["num_hidden_layers"]
        return [
            name
            for name in self.gguf.tensors
            if name not in self._used and not is_extra(name, layers, self.gguf.tensors)
        ]

    def promise(self, names: Iterable[str]) -> None:
        """Counts tensors as taken that a module reads later, each time it is called."""
        self._used.update(names)

    def _take(self, name: str) -> None:
        if name not in self._used:  # a tied embedding is bound twice and counts once
            self._used.add(name)
            self.bytes_bound += self.gguf.tensor(name).nbytes

    def _data(self, info) -> tuple[np.ndarray, str]:
        """The bytes and their type, which is known when they have been converted."""
        self._take(info.name)
        data = self.gguf.data(info.name)
        return data, self.gguf.tensor(info.name).type

    def source(self, parameter: str) -> TensorSource:
        return tensor_source(parameter, self.gguf, self.config)

    def matrix(self, parameter: str, rows: int, cols: int) -> Blocks:
        """A linear's weight [rows, cols]. Raises: UserError where the file's shape differs."""
        source = self.source(parameter)
        if source.kind not in ("plain", "pairs"):
            raise UserError(f"{self.gguf.path}: {source.names[0]}: is no single matrix")
        info = self.gguf.tensor(source.names[0])
        shape = (1, *info.shape) if len(info.shape) == 1 and rows == 1 else info.shape
        if shape != (rows, cols):
            raise self._wrong_shape(info, (rows, cols))
        data, kind = self._data(info)
        if source.kind == "pairs":
            data = unpair_rows(data.reshape(rows, -1), source.heads).reshape(-1)
        return Blocks(data, kind, rows, cols, info.name)

    def experts(self, parameter: str, count: int, rows: int, cols: int) -> list:
        """The expert matrices of a stacked parameter: per part a Stack, or a list of Blocks where
        the file has a tensor for each expert."""
        parts: list = []
        for names in self.source(parameter).parts:
            if len(names) == 1:
                parts.append(self._stack(names[0], count, rows, cols))
                continue
            part = []
            for name in names:
                info = self.gguf.tensor(name)
                if info.shape != (rows, cols):
                    raise self._wrong_shape(info, (rows, cols))
                part.append(Blocks(*self._data(info), rows, cols, name))
            parts.append(part)
        return parts

    def heads(self, name: str, heads: int, rows: int, cols: int) -> Stack:
        """A GGUF tensor [heads, rows, cols]: one matrix per head."""
        return self._stack(name, heads, rows, cols)

    def _stack(self, name: str, count: int, rows: int, cols: int) -> Stack:
        info = self.gguf.tensor(name)
        if info.shape != (count, rows, cols):
            raise self._wrong_shape(info, (count, rows, cols))
        data, kind = self._data(info)
        return Stack(data, kind, count, rows, cols, name)

    def floats(self, parameter: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The parameter as float32 in transformers' layout."""
        source = self.source(parameter)
        parts = [self._part(names) for names in source.parts]
        value = parts[0]
        if source.kind == "pairs":
            value = unpair_rows(value, source.heads)
        elif source.kind == "stack":
            value = np.concatenate(parts, axis=1)
        elif source.kind == "kv_b":
            k_b, v_b = parts  # [heads, latent, nope], [heads, v, latent]
            value = np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1)
            value = value.reshape(-1, value.shape[-1])
        if shape is not None and value.shape != tuple(shape):
            if value.size != np.prod(shape, dtype=np.int64) or value.ndim == len(shape):
                raise self._wrong_shape(self.gguf.tensor(source.names[0]), tuple(shape))
            value = value.reshape(shape)
        return np.ascontiguousarray(value)

    def _part(self, names: tuple[str, ...]) -> np.ndarray:
        for name in names:
            self._take(name)
        if len(names) == 1:
            return self.gguf.dequantize(names[0])
        return np.stack([self.gguf.dequantize(name) for name in names])

    def _wrong_shape(self, info, expected: tuple[int, ...]) -> UserError:
        return UserError(
            f"{info.file}: {info.name}: shape {list(info.shape)}, the configuration needs "
            f"{list(expected)}; download another file of the model"
        )


def is_extra(name: str, layers: int, tensors) -> bool:
    """Whether a model of `layers` layers is whole without this tensor.

    Frequencies (operators.rope reads them), layers that only draft tokens, and k_b/v_b beside the
    kv_b they were made from.
    """
    if name in EXTRA_TENSORS:
        return True
    match = _BLOCK.match(name)
    if not match:
        return False
    if int(match["block"]) >= layers:
        return True
    whole = f"blk.{match['block']}.attn_kv_b.weight"
    return match["rest"] in ("attn_k_b.weight", "attn_v_b.weight") and whole in tensors


def unpair_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * (half, 2), ...] of rotary pairs -> [heads * (2, half), ...]."""
    if rows.shape[0] % (2 * heads):
        raise UserError(f"{rows.shape[0]} rows are no {heads} heads of rotary pairs")
    half = rows.shape[0] // heads // 2
    paired = rows.reshape(heads, half, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)
