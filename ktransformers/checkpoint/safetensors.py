"""Tensors of a folder of .safetensors files, mapped: names, types, shapes, bytes. No torch.

The format: eight bytes with the length of a JSON header, the header, then the tensors' bytes; the
header's offsets count from its own end. Every length is checked before it is used. Pickled
checkpoints are refused by name, unopened: to read one is to run it.
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ktransformers.checkpoint.gguf import REFUSED_SUFFIXES, some
from ktransformers.errors import UserError

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 << 20  # the format's own limit
MAX_INDEX = 64 << 20

# dtype in the header -> (our name of it, bytes per value)
DTYPES = {
    "F64": ("f64", 8), "F32": ("f32", 4), "F16": ("f16", 2), "BF16": ("bf16", 2),
    "F8_E4M3": ("fp8", 1), "F8_E5M2": ("fp8_e5m2", 1), "I64": ("i64", 8), "I32": ("i32", 4),
    "I16": ("i16", 2), "I8": ("i8", 1), "U8": ("u8", 1), "BOOL": ("bool", 1),
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; begin, end: its bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class SafetensorsFolder:
    """All tensors of one checkpoint. tensors: by name; packed.gather puts some of them together.

    Raises: UserError naming file and tensor.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = [folder / name for name in find_shards(folder)]
        self._maps: list[mmap.mmap] = []
        self.tensors: dict[str, StoredTensor] = {}
        for number, path in enumerate(self.paths):
            self._open(number, path)
        self._stored = dict(self.tensors)

    def _open(self, number: int, path: Path) -> None:
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); download it again") from error
        self._maps.append(mapped)
        for tensor in read_header(path, mapped, number):
            if tensor.name in self.tensors:
                other = self.paths[self.tensors[tensor.name].file].name
                raise UserError(f"{path}: tensor {tensor.name} is in {other} too")
            self.tensors[tensor.name] = tensor

    def bytes_of(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8: a read-only view that keeps the map alive."""
        tensor = self._stored[name]
        return np.frombuffer(self._maps[tensor.file], np.uint8, tensor.nbytes, tensor.begin)

    def drop(self, name: str) -> None:
        """Lets the system take back the pages that hold this tensor and nothing else."""
        tensor = self._stored[name]
        page = mmap.PAGESIZE
        begin, end = -(-tensor.begin // page) * page, tensor.end // page * page
        if end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[tensor.file].madvise(mmap.MADV_DONTNEED, begin, end - begin)


def find_shards(folder: Path) -> list[str]:
    """The files of the checkpoint in `folder`, in order; opens the index only. Raises: UserError
    for missing shards, several checkpoints, or pickles."""
    names = sorted(entry.name for entry in folder.iterdir())
    if INDEX in names:
        return shards_of_index(folder / INDEX, set(names))
    shards = [name for name in names if name.lower().endswith(".safetensors")]
    numbered = [name for name in shards if "-of-" in name]
    if numbered:
        whole = int(numbered[0].rpartition("-of-")[2].partition(".")[0] or 0)
        if len(numbered) != whole:
            raise UserError(
                f"{folder}: {len(numbered)} of {whole} shards are here and {INDEX} is not; "
                "download the folder again"
            )
    elif len(shards) > 1:
        raise UserError(f"{folder}: which of these is the model? {some(shards)}")
    if shards:
        return shards
    pickles = [name for name in names if Path(name).suffix.lower() in REFUSED_SUFFIXES]
    if pickles:
        kind = REFUSED_SUFFIXES[Path(pickles[0]).suffix.lower()]
        raise UserError(
            f"{folder / pickles[0]}: is {kind} by its name and was not opened; "
            "download the model as .safetensors or GGUF"
        )
    raise UserError(f"{folder}: holds no .safetensors file; download the whole folder")


def shards_of_index(path: Path, names: set[str]) -> list[str]:
    """The shards that model.safetensors.index.json names. Raises: UserError."""
    try:
        if path.stat().st_size > MAX_INDEX:
            raise UserError(f"{path}: is larger than {MAX_INDEX} bytes, which no index is")
        weight_map = json.loads(path.read_bytes())["weight_map"]
        found = sorted(set(weight_map.values()))
        if any(not isinstance(name, str) or "/" in name or "\\" in name for name in found):
            raise ValueError("a shard's name is no file name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is no index of shards ({error}); download it again") from error
    for name in found:
        suffix = Path(name).suffix.lower()
        if suffix != ".safetensors":
            kind = REFUSED_SUFFIXES.get(suffix, "no .safetensors file")
            raise UserError(f"{path}: names {name}, which is {kind} and was not opened")
    missing = [name for name in found if name not in names]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{path.parent}: {len(missing)} of {len(found)} shards {are} missing: {some(missing)}; "
            "download them into this folder"
        )
    return found


def read_header(path: Path, data: mmap.mmap, number: int) -> list[StoredTensor]:
    """The tensors of one file. Raises: UserError with what is wrong where."""

    def bad(what: str) -> UserError:
        return UserError(f"{path}: {what}; the file is damaged, download it again")

    if len(data) < 8:
        raise bad(f"has {len(data)} bytes, too few for a header")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER or length > len(data) - 8:
        raise bad(f"says its header has {length} bytes, but the file has {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise bad(f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise bad("its header is no JSON object")
    base, found = 8 + length, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sizes = [*shape, begin, end]
            if any(type(n) is not int or n < 0 for n in sizes) or len(shape) > 8:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise bad(f"tensor {name!r:.80} is not described as it should be") from None
        if dtype not in DTYPES:
            raise UserError(f"{path}: tensor {name} has type {dtype!r:.40}, which is not supported")
        kind, size = DTYPES[dtype]
        count = size
        for n in shape:
            count *= n
        if end - begin != count or base + end > len(data):
            raise bad(
                f"tensor {name} of {dtype} {shape} lies at {begin}..{end} of {len(data) - base}"
            )
        found.append(StoredTensor(name, kind, tuple(shape), number, base + begin, base + end))
    return found
