"""GGUF models on disk: finding the files, opening them, and refusing what is no model.

`open_model` is the door every command goes through. It takes a file, a part of a split model or a
folder, and turns everything that can be wrong with them into one `UserError`. Imports no torch.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint.pieces import Piece, convert, fitting_type, stored_as, type_bytes
from ktransformers.errors import UserError

SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.I)
MAX_PARTS = 1000  # csrc/gguf/file.cpp has the same bound for the files' own words

# Never opened: what they hold may be code, and none of it is a GGUF.
REFUSED_SUFFIXES = {
    ".safetensors": "a safetensors checkpoint",
    ".bin": "a PyTorch checkpoint",
    ".pt": "a PyTorch checkpoint",
    ".pth": "a PyTorch checkpoint",
    ".ckpt": "a PyTorch checkpoint",
    ".pkl": "a Python pickle",
    ".pickle": "a Python pickle",
    ".npz": "a NumPy archive",
    ".onnx": "an ONNX model",
    ".ggml": "a GGML file, the format before GGUF",
}
UNFINISHED_SUFFIXES = {".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2"}
# In a model's folder, but not the model: vision projectors and importance matrices.
COMPANIONS = re.compile(r"^(mmproj|imatrix)|[-_.](mmproj|imatrix)", re.I)

_PLAIN_NUMBERS = {"i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8", "f64": "<f8"}
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as it lies in its file; `shape` in torch's order, (out, in) for a linear."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    offset: int


class Metadata(Mapping):
    """The keys of a model, over all its files; a value is made when it is first asked for."""

    def __init__(self, core: "_core.GgufFile"):
        self._core = core
        self._keys = core.keys()
        self._made: dict[str, object] = {}

    def __getitem__(self, key: str) -> int | float | bool | str | list[str] | np.ndarray:
        if key not in self._made:
            self._made[key] = self._core.value(key)
        return self._made[key]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._core.has(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def type_of(self, key: str) -> str:
        """The type in the file, as `_core.GgufWriter.add` takes it: "u32", "[string]", ..."""
        return self._core.value_type(key)

    def count_of(self, key: str) -> int:
        """Elements of an array, without making it."""
        return self._core.count(key)


class GGUFFile:
    """One GGUF file or the files of a split model, mapped read-only.

    types: {tensor: weight type it is handed out as instead of the file's}.
    Raises: UserError for whatever is wrong with the files.
    """

    def __init__(self, path: str | Path | list[str | Path]):
        paths = [path] if isinstance(path, str | Path) else list(path)
        self.paths = [str(p) for p in paths]
        self.types: dict[str, str] = {}
        try:
            self._core = _core.GgufFile(self.paths)
        except (ValueError, NotImplementedError, OSError) as error:
            raise UserError(str(error)) from error
        self.metadata = Metadata(self._core)
        self.tensors = {
            name: TensorInfo(name, type_name, shape, nbytes, self.paths[part], offset)
            for name, type_name, shape, nbytes, part, offset in self._core.tensors()
        }

    @property
    def path(self) -> str:
        """The file that messages about the whole model name."""
        return self.paths[0]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def files(self) -> list[str]:
        """Paths of the files the tensors come from."""
        return self.paths

    @property
    def bytes_total(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str) -> TensorInfo:
        """Raises: UserError naming a tensor that is missing."""
        if name not in self.tensors:
            raise UserError(
                f"{self.path}: has no tensor '{name}'; the file is incomplete or of another "
                "architecture, download it again"
            )
        info = self.tensors[name]
        if name not in self.types:
            return info
        kind = fitting_type(self.types[name], info.shape[-1])
        nbytes = type_bytes(kind, math.prod(info.shape))
        return replace(info, type=stored_as(kind), nbytes=nbytes)

    def data(self, name: str) -> np.ndarray:
        """The tensor's bytes: uint8, read-only, a view that keeps the map alive; in the type that
        `types` says, or the next higher one that is good enough, which it then says."""
        self.tensor(name)
        if name not in self.types:
            return self._core.data(name)
        threads = _core.cpu_info()["default_threads"]
        kind = fitting_type(self.types[name], self.tensors[name].shape[-1])
        out, outcome = convert(name, self.pieces(name), kind, threads, self.path)
        self.types[name] = outcome.type
        self.advise(name, "dontneed")
        return out

    def pieces(self, name: str) -> list[Piece]:
        """The matrices of a tensor, as stored: one, or one per expert."""
        info = self.tensors[name]
        data = self._core.data(name)
        rows, cols = (info.shape[-2] if len(info.shape) > 1 else 1), info.shape[-1]
        count = math.prod(info.shape[:-2])
        size = data.size // count
        parts = (data[i * size : (i + 1) * size] for i in range(count))
        return [Piece(name, info.type, rows, cols, partial(_same, part)) for part in parts]

    def stored_type(self, name: str) -> str:
        """The type in the file, whatever `types` says."""
        return self.tensors[name].type

    def stored_bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return self.bytes_total

    def dequantize(self, name: str) -> np.ndarray:
        """The tensor as float32 of its shape."""
        info = self.tensor(name)
        if dtype := _PLAIN_NUMBERS.get(info.type):
            return self._core.data(name).view(dtype).astype(np.float32).reshape(info.shape)
        return _core.dequantize(self._core.data(name), info.type).reshape(info.shape)

    def advise(self, name: str, advice: str) -> None:
        """How the tensor's pages will be used: normal, sequential, willneed, dontneed (drop)."""
        self._core.advise(name, advice)

    def drop_from_cache(self, drop: bool) -> None:
        """Whether pages that were repacked also leave the system's file cache."""
        self._core.drop_from_cache(drop)

    def integer(self, key: str, least: int = 0, most: int = 2**31 - 1, default=_REQUIRED) -> int:
        """An integer of any width. Raises: UserError if absent (and no default) or out of range."""
        return self._typed(self._core.find_int, key, default, least, most)

    def number(self, key: str, least=-1e30, most=1e30, default=_REQUIRED) -> float:
        """A finite number; integers count. Raises: UserError like `integer`."""
        return self._typed(self._core.find_float, key, default, least, most)

    def text(self, key: str, default=_REQUIRED) -> str:
        """A string. Raises: UserError if absent (and no default) or of another type."""
        return self._typed(self._core.find_string, key, default)

    def _typed(self, find, key, default, *limits):
        try:
            value = find(key, *limits)
        except ValueError as error:
            raise UserError(str(error)) from error
        if value is not None:
            return value
        if default is _REQUIRED:
            raise UserError(f"{self.path}: has no key '{key}'; download another file of the model")
        return default

    def check_model(self) -> None:
        """What every model must fulfil, whatever its architecture. Raises: UserError."""
        try:
            self._core.check_model()
        except (ValueError, NotImplementedError) as error:
            raise UserError(str(error)) from error


def open_model(path: str | Path, architectures: Collection[str] | None = None) -> GGUFFile:
    """Opens the model at `path`: a file, any part of a split model, or a folder with one model, in
    GGUF or as Hugging Face folders are (config.json and .safetensors).

    architectures: the names this build can run (from models.registry); None asks for no name.
    Raises: UserError with one line for everything that can be wrong.
    """
    path = Path(path).expanduser()
    from ktransformers.checkpoint.folder_model import FolderModel, is_folder_model

    try:
        is_folder = is_folder_model(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    model = FolderModel(path) if is_folder else GGUFFile(find_parts(path))
    architecture = model.text("general.architecture", default=None)
    if architectures is not None and architecture and architecture not in architectures:
        shown = repr(architecture[:80])
        raise UserError(
            f"{model.path}: architecture {shown} is not supported; supported are "
            + ", ".join(sorted(architectures))
        )
    model.check_model()
    return model


def _same(part: np.ndarray) -> np.ndarray:
    return part


def find_parts(path: Path) -> list[Path]:
    """The files of the model at `path`, in order; opens none of them. Raises: UserError."""
    try:
        if path.is_dir():
            return _parts_of_folder(path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"{path}: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise UserError(
            f"{path}: is {REFUSED_SUFFIXES[suffix]} by its name and was not opened; "
            "download a GGUF of the model"
        )
    if suffix in UNFINISHED_SUFFIXES:
        raise UserError(f"{path}: is an unfinished download by its name; let it finish first")
    match = SPLIT_NAME.match(path.name)
    return _parts_of_split(path.parent, match) if match else [path]


def _parts_of_split(folder: Path, match: re.Match) -> list[Path]:
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count or count > MAX_PARTS:
        raise UserError(
            f"{folder / match[0]}: part {int(match['number'])} of {count} cannot be; "
            f"a split model has parts 1 to n, n at most {MAX_PARTS}; rename the files"
        )
    end = match[0][len(match["stem"]) + len("-00001") :]  # as it is written here: -of-00003.gguf
    parts = [folder / f"{match['stem']}-{i:05d}{end}" for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of the {count} parts of {match['stem']} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {some(missing)}; download "
            f"{'it' if len(missing) == 1 else 'them'} into this folder"
        )
    return parts


def _parts_of_folder(folder: Path) -> list[Path]:
    names = sorted(entry.name for entry in folder.iterdir())
    models = group_models(names)
    if len(models) == 1:
        ((first, *_),) = models.values()
        match = SPLIT_NAME.match(first)
        return _parts_of_split(folder, match) if match else [folder / first]
    if models:
        raise UserError(
            f"{folder}: holds {len(models)} models, give the path of one of them: "
            + some([parts[0] for parts in models.values()])
        )
    unfinished = [n for n in names if Path(n).suffix.lower() in UNFINISHED_SUFFIXES]
    others = [n for n in names if Path(n).suffix.lower() in REFUSED_SUFFIXES]
    what = "is empty" if not names else "holds no .gguf file"
    if unfinished:
        what += f", only the unfinished download {unfinished[0]}"
    elif others:
        what += f", only {others[0]}, {REFUSED_SUFFIXES[Path(others[0]).suffix.lower()]}"
    raise UserError(f"{folder}: {what}; download a GGUF of the model into it")


def group_models(names: Iterable[str]) -> dict[str, list[str]]:
    """The models among file names (companions left out): key -> its files in order.

    The files of a split model are one entry, whether all are there or not.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        base = name.rpartition("/")[2]
        if not base.lower().endswith(".gguf") or COMPANIONS.search(base):
            continue
        match = SPLIT_NAME.match(name)
        key = f"{match['stem']}-of-{match['count']}" if match else name
        models.setdefault(key, []).append(name)
    return models


def some(names: list[str], most: int = 8) -> str:
    """A list for a message, its end left out when it is long."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
