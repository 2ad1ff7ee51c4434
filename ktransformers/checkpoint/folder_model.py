"""A Hugging Face folder that answers like an open GGUF file: the same keys, names and shapes.

So that every command takes either, and one family file serves both. Tensors keep the type they are
stored in until someone asks for their bytes; `types` says what they become then. Nothing in the
folder is imported or run: config.json is data, and pickles are refused unopened.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint import metadata as md
from ktransformers.checkpoint.config_files import ModelFolder
from ktransformers.checkpoint.gguf import GGUFFile, TensorInfo
from ktransformers.checkpoint.hf_metadata import Config, metadata_of
from ktransformers.checkpoint.hf_names import Part, Recipe, recipes
from ktransformers.checkpoint.hf_tokenizer import tokenizer_keys
from ktransformers.checkpoint.packed import PackedTensor, gather
from ktransformers.checkpoint.packed_config import FP8_BLOCK, packed_scheme
from ktransformers.checkpoint.pieces import PLAIN, Piece, convert, fitting_type, type_bytes
from ktransformers.checkpoint.safetensors import SafetensorsFolder
from ktransformers.errors import UserError

CODES = ("int4", "int8")
ROUNDED_CODES = "q8_0"  # what integer codes become that no blocks can have as they are


def is_folder_model(path: Path) -> bool:
    """Whether `path` is a folder with a config.json and no GGUF file."""
    if not path.is_dir() or not (path / "config.json").is_file():
        return False
    return not any(entry.suffix.lower() == ".gguf" for entry in path.iterdir())


class FolderMetadata(Mapping):
    """The keys a GGUF of this model would carry; the tokenizer's are made when one is asked for."""

    def __init__(self, keys: dict[str, tuple[str, Any]], tokenizer):
        self._keys, self._tokenizer = keys, tokenizer
        self._whole = False

    def _all(self) -> dict[str, tuple[str, Any]]:
        if not self._whole:
            self._keys |= self._tokenizer()
            self._whole = True
        return self._keys

    def _table(self, key: object) -> dict[str, tuple[str, Any]]:
        return self._all() if str(key).startswith("tokenizer.") else self._keys

    def __getitem__(self, key: str) -> Any:
        return self._table(key)[key][1]

    def __contains__(self, key: object) -> bool:
        return key in self._table(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def type_of(self, key: str) -> str:
        """As GGUFFile's metadata have it."""
        return self._table(key)[key][0]

    def count_of(self, key: str) -> int:
        """Elements of an array."""
        value = self[key]
        return len(value) if isinstance(value, list) else 1


class FolderModel(GGUFFile):
    """An open folder. types: {GGUF name: type it is handed out as}; what is not in it is handed out
    as stored: fp8 as bf16, integer codes in the blocks that can have them.

    Raises: UserError for everything that is wrong with the folder.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        self.folder = ModelFolder(path)
        self.paths = [str(path)]
        self.threads = threads or _core.cpu_info()["default_threads"]
        where = self.folder.path / "config.json"
        values = self.folder.json("config.json")
        if values is None:
            raise UserError(f"{where}: missing; download the whole folder")
        self.config = Config(values, where)
        scheme = packed_scheme(self.config)
        self.stored = SafetensorsFolder(self.folder.path)
        if scheme:
            gather(self.stored, scheme)
        self._kept: dict[str, str | None] = {}
        self._instead: Counter[tuple[str, str]] = Counter()  # (type codes should have had, has)
        self._recipes, self.draft_tensors = recipes(self.stored, self.config)
        self.types: dict[str, str] = {}
        keys = metadata_of(self.config, self.folder.path.resolve().name)

        def tokenizer() -> dict[str, tuple[str, Any]]:
            rows = self._recipes["token_embd.weight"].shape[0]
            return tokenizer_keys(self.folder, rows, self.config.model_type)

        self.metadata = FolderMetadata(keys, tokenizer)
        if "token_embd.weight" not in self._recipes:
            raise UserError(f"{path}: has no tensor model.embed_tokens.weight")

    @property
    def files(self) -> list[str]:
        """As GGUFFile's; what config.json says decides how they are read."""
        return [str(self.folder.path / "config.json"), *map(str, self.stored.paths)]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """As they are handed out, not as stored."""
        return {name: self._info(recipe) for name, recipe in self._recipes.items()}

    def _info(self, recipe: Recipe) -> TensorInfo:
        kind = self.type_of(recipe.name)
        nbytes = type_bytes(kind, math.prod(recipe.shape))
        kind = "q4_0" if kind == "int4g128" else kind
        return TensorInfo(recipe.name, kind, recipe.shape, nbytes, self.path, 0)

    def type_of(self, name: str) -> str:
        """The type a tensor is handed out as; int4g128 keeps its name."""
        if name in self.types:
            return fitting_type(self.types[name], self._recipes[name].shape[-1])
        stored = self.stored_type(name)
        if stored in CODES:
            return fitting_type(
                self.kept_type(name) or ROUNDED_CODES, self._recipes[name].shape[-1]
            )
        return stored if stored in PLAIN else "bf16" if stored == "fp8" else "f32"

    def kept_type(self, name: str) -> str | None:
        """The type whose blocks have a tensor's integer codes as they are; None: it has none, or
        no blocks can have them."""
        if name not in self._kept:
            parts = [self.stored.tensors[part.stored] for part in self._recipes[name].parts]
            packed = all(isinstance(part, PackedTensor) for part in parts)
            kinds = {part.kept_type() for part in parts} if packed and parts else {None}
            # Zero points in some of a layer's experts: blocks with a minimum hold the others, too.
            self._kept[name] = kinds.pop() if len(kinds) == 1 else (
                "q4_1" if kinds == {"q4_0", "q4_1"} else None
            )  # fmt: skip
        return self._kept[name]

    def keeps_codes(self, name: str, kind: str) -> bool:
        """Whether blocks of that type have a tensor's integer codes as they are."""
        kept = self.kept_type(name)
        return kept is not None and kind in (kept, "q8_0", *(("q4_1",) if kept == "q4_0" else ()))

    @property
    def coded(self) -> list[str]:
        """Tensors that are stored as integer codes."""
        return [name for name in self._recipes if self.stored_type(name) in CODES]

    def remarks(self) -> list[str]:
        """What became of integer codes that could not stay as they are, as far as it is known."""
        lines = []
        lost = [n for n in self.coded if n not in self.types and self.kept_type(n) is None]
        if lost:
            kinds = " and ".join(sorted({self.type_of(name) for name in lost}))
            lines.append(
                f"{len(lost)} tensors are rounded again, to {kinds}: their groups are no runs of "
                "32 columns (desc_act, actorder), or their codes are of 8 bits with zero points"
            )
        for (asked, got), count in self._instead.items():
            lines.append(
                f"{count} tensors are {got} instead of {asked}, which cannot have their scales or "
                "zero points"
            )
        return lines

    def stored_type(self, name: str) -> str:
        """The type in the folder: f32, f16, bf16, fp8; int4 and int8 are codes in words."""
        recipe = self._recipes[name]
        return self.stored.tensors[recipe.parts[0].stored].dtype if recipe.parts else "f32"

    def stored_bytes(self) -> int:
        """Bytes of the folder's tensors."""
        return sum(tensor.nbytes for tensor in self.stored.tensors.values())

    def tensor(self, name: str) -> TensorInfo:
        """Raises: UserError naming a tensor that is missing."""
        if name not in self._recipes:
            raise UserError(f"{self.path}: has nothing for the tensor '{name}'; download it again")
        return self._info(self._recipes[name])

    def pieces(self, name: str) -> list[Piece]:
        """The matrices of a tensor, as stored."""
        recipe = self._recipes[name]
        if recipe.values is not None:
            values = recipe.values
            return [Piece(name, "f32", 1, values.size, lambda: values.view(np.uint8))]
        return [self._piece(recipe, part) for part in recipe.parts]

    def _piece(self, recipe: Recipe, part: Part) -> Piece:
        tensor = self.stored.tensors[part.stored]
        if isinstance(tensor, PackedTensor):
            rows = None
            if recipe.pair_heads:
                rows = pair_rows(np.arange(part.rows, dtype=np.int32), recipe.pair_heads)
            opened = partial(tensor.open, rows)
            return Piece(part.stored, tensor.dtype, part.rows, part.cols, None, packed=opened)
        size = {"f64": 8, "f32": 4, "fp8": 1}.get(tensor.dtype, 2)
        row = part.cols * size
        first = part.first + (part.index or 0) * (tensor.shape[1] if part.index is not None else 0)

        def read() -> np.ndarray:
            data = self.stored.bytes_of(part.stored)[first * row : (first + part.rows) * row]
            data = data.reshape(part.rows, row)
            if recipe.pair_heads:
                data = pair_rows(data, recipe.pair_heads)
            if tensor.dtype == "f64":
                data = data.view("<f8").astype("<f4").view(np.uint8)
            return data

        scales = None
        if tensor.dtype == "fp8":
            scales = self._scales(part, recipe)
        kind = "f32" if tensor.dtype == "f64" else tensor.dtype
        return Piece(part.stored, kind, part.rows, part.cols, read, scales)

    def _scales(self, part: Part, recipe: Recipe):
        name = f"{part.stored}_scale_inv"
        wanted = (-(-part.rows // FP8_BLOCK), -(-part.cols // FP8_BLOCK))
        found = self.stored.tensors.get(name)
        if found is None or found.dtype != "f32" or found.shape != wanted or recipe.pair_heads:
            have = "is missing" if found is None else f"is {found.dtype} {list(found.shape)}"
            raise UserError(
                f"{self.path}: {name} {have}; an fp8 matrix of {part.rows} x {part.cols} needs "
                f"f32 {list(wanted)}, one scale per {FP8_BLOCK} x {FP8_BLOCK} values"
            )
        return lambda: self.stored.bytes_of(name).view("<f4").reshape(wanted)

    def data(self, name: str) -> np.ndarray:
        """The tensor's bytes in the type `types` says; a higher one where that is not good enough,
        which `types` then says."""
        pieces, kind = self.pieces(name), self.type_of(name)
        out, outcome = convert(name, pieces, kind, self.threads, self.path)
        if outcome.type != kind:
            self.types[name] = outcome.type
            if pieces[0].packed:
                self._instead[kind, outcome.type] += 1
        for piece in pieces:
            self.drop(piece)
        return out

    def drop(self, piece: Piece) -> None:
        """Lets the system take back the pages a piece came from."""
        tensor = self.stored.tensors.get(piece.name)
        if isinstance(tensor, PackedTensor):
            tensor.drop()
        elif tensor is not None:
            self.stored.drop(piece.name)

    def dequantize(self, name: str) -> np.ndarray:
        """The stored values as float32, whatever `types` says."""
        parts = []
        for piece in self.pieces(name):
            if piece.packed:
                parts.append(piece.packed().to_floats(0, piece.rows))
                continue
            scales = piece.scales() if piece.scales else None
            data = np.ascontiguousarray(piece.read())
            parts.append(_core.to_floats(data, piece.format, piece.rows, piece.cols, scales))
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole.reshape(self._recipes[name].shape)

    def advise(self, name: str, advice: str) -> None:
        """As GGUFFile's."""

    def drop_from_cache(self, drop: bool) -> None:
        """As GGUFFile's; pages that were converted are given up in any case."""

    def check_model(self) -> None:
        """The configuration was checked on opening."""

    def integer(self, key: str, least: int = 0, most: int = 2**31 - 1, default=...) -> Any:
        """As GGUFFile's."""
        extra = {} if default is ... else {"default": default}
        return md.get_int(self, key, least, most, **extra)

    def number(self, key: str, least=-1e30, most=1e30, default=...) -> Any:
        """As GGUFFile's."""
        extra = {} if default is ... else {"default": default}
        return md.get_float(self, key, least, most, **extra)

    def text(self, key: str, default=...) -> Any:
        """As GGUFFile's."""
        extra = {} if default is ... else {"default": default}
        return md.get_str(self, key, **extra)


def pair_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * (2, half), ...] -> [heads * (half, 2), ...]: the inverse of unpair_rows."""
    half = rows.shape[0] // heads // 2
    halves = rows.reshape(heads, 2, half, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
