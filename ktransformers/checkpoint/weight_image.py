"""Repacked weights on disk: written while a model loads, read straight into place the next time.

An image holds the records of every matrix of one model file as the kernels read them:

    one page        magic
    records         matrix after matrix, each stack on a page boundary
    index           JSON: format version, record layout version, the model file, {name: Entry}
    16 bytes        length of the index, magic

It appears under its name when it is complete and on disk, never before: a process that is killed
leaves at most a ".partial-<pid>" file, which the next writer removes. It is used only for the very
file it was made from, as size, time and a checksum of both ends say. Every entry has a checksum,
which is compared when its records are copied into memory; weights that stay in the file are not
read for that. Imports no torch.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint.weights import Blocks, Stack
from ktransformers.errors import UserError

MAGIC = b"KTWIMG2\n"
PAGE = 4096
TAIL = 16
ENDS = 1 << 16  # bytes of each end of a model file that its identity covers
_PARTIAL = re.compile(r"\.partial-(\d+)$")


def repack(context: "_core.Context", part: Stack | Blocks) -> list["_core.Matrix"]:
    """The matrices of file blocks, in memory of the nodes that will read them."""
    count = getattr(part, "count", 1)
    return _core.Matrix.repack_stack(
        context, part.data, part.format, count, part.rows, part.cols, part.name
    )


def identity(paths: list[str]) -> list[dict]:
    """What tells the files of a model from others: name, size, time, checksum of both ends."""
    files = []
    for path in paths:
        status = os.stat(path)
        with open(path, "rb") as file:
            checksum = hashlib.sha256(file.read(ENDS))
            file.seek(max(status.st_size - ENDS, 0))
            checksum.update(file.read(ENDS))
        files.append(
            {
                "name": Path(path).name,
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "ends": checksum.hexdigest(),
            }
        )
    return files


def image_path(folder: Path, files: list[dict]) -> Path:
    """Where the image of a model lies; another file of the same name has another place."""
    key = hashlib.sha256(json.dumps([files, _core.R16_VERSION]).encode()).hexdigest()[:16]
    return folder / f"{Path(files[0]['name']).stem}-{key}.ktw"


def open_image(folder: Path, paths: list[str]) -> "ImageReader | None":
    """The valid image of a model; None where there is none. A broken one is removed."""
    files = identity(paths)
    path = image_path(folder, files)
    if not path.is_file():
        return None
    try:
        return ImageReader(path, files)
    except (ValueError, KeyError, TypeError, OSError):
        path.unlink(missing_ok=True)
        return None


def entry_of(part: Stack | Blocks) -> list:
    return [part.format, getattr(part, "count", 1), part.rows, part.cols]


class ImageReader:
    """Raises: ValueError, KeyError, TypeError or OSError for what is no image of these files."""

    def __init__(self, path: Path, files: list[dict]):
        self.path = path
        self.map = _core.FileMap(str(path))
        size = self.map.size
        tail = bytes(self.map.bytes(size - TAIL, TAIL)) if size > PAGE + TAIL else b""
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != MAGIC or bytes(self.map.bytes(0, 8)) != MAGIC or length > size - PAGE - TAIL:
            raise ValueError(f"{path}: is no image of weights")
        index = json.loads(bytes(self.map.bytes(size - TAIL - length, length)))
        if index["records"] != _core.R16_VERSION or index["files"] != files:
            raise ValueError(f"{path}: is the image of another model")
        self.entries: dict[str, dict] = index["entries"]
        self.nbytes = size

    def matrices(
        self, context: "_core.Context", part: Stack | Blocks, in_place: bool
    ) -> list["_core.Matrix"] | None:
        """The matrices of a part, copied into memory or left in the file; None: not in here, or
        damaged."""
        entry = self.entries.get(part.name)
        if entry is None or entry["shape"] != entry_of(part):
            return None
        records = self.map.bytes(entry["offset"], entry["bytes"])
        if not in_place and _core.checksum(context, records) != entry["checksum"]:
            return None  # damaged: the model's own file has it
        return _core.Matrix.from_records(context, records, *entry["shape"], part.name, in_place)


class ImageWriter:
    """Writes an image while a model loads. Without `commit` nothing remains.

    most: bytes the records can come to. in_place: matrices are read from the file while it is
    written. Raises: UserError where the folder cannot be written or its disk lacks the room.
    """

    def __init__(self, folder: Path, paths: list[str], most: int, in_place: bool = False):
        self.files = identity(paths)
        self.path = image_path(folder, self.files)
        self._entries: dict[str, dict] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            room = os.statvfs(folder)
            if room.f_bavail * room.f_frsize < most:
                raise UserError(
                    f"{folder}: the repacked weights need {most / 2**30:.1f} GiB, "
                    f"{room.f_bavail * room.f_frsize / 2**30:.1f} GiB are free; make room or name "
                    "another folder with --weight_cache"
                )
            self._partial = Path(f"{self.path}.partial-{os.getpid()}")
            self._file = open(self._partial, "w+b")  # noqa: SIM115 - lives as long as the writer
            self._file.write(MAGIC.ljust(PAGE, b"\0"))
            self._offset = PAGE
            self._map = None
            if in_place:  # one map for all: it needs its length before there is anything in it
                self._file.truncate(PAGE + most)
                self._map = _core.FileMap(str(self._partial))
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}: name another --weight_cache") from error

    def keep(
        self, context: "_core.Context", part: Stack | Blocks, matrices: list["_core.Matrix"]
    ) -> None:
        """Appends the records of a part. Raises: UserError where the disk is full."""
        start, checksum = self._offset, 0
        try:
            for matrix in matrices:
                for _, _, _, records in matrix.slices:
                    place = (self._offset - start) // 8
                    checksum += _core.checksum(context, records, place)
                    self._write(records)
            end = self._offset
            self._write(np.zeros(-end % PAGE, np.uint8))
        except OSError as error:
            raise UserError(f"{self._partial}: {error.strerror}") from error
        entry = {"offset": start, "bytes": end - start, "shape": entry_of(part)}
        entry["checksum"] = checksum % 2**64
        self._entries[part.name] = entry

    def _write(self, data: np.ndarray) -> None:
        self._file.write(data.data)
        self._offset += len(data)

    def reread(self, context: "_core.Context", part: Stack | Blocks) -> list["_core.Matrix"]:
        """The matrices of a part that was kept, in the unfinished file: its bytes are final."""
        self._file.flush()
        entry = self._entries[part.name]
        records = self._map.bytes(entry["offset"], entry["bytes"])
        return _core.Matrix.from_records(context, records, *entry["shape"], part.name, True)

    def commit(self) -> None:
        """Makes the image visible, complete and on disk."""
        index = {"records": _core.R16_VERSION, "files": self.files, "entries": self._entries}
        text = json.dumps(index).encode()
        try:
            self._file.write(text + len(text).to_bytes(8, "little") + MAGIC)
            self._file.truncate()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            self.abandon()
            raise UserError(f"{self.path}: {error.strerror}") from error

    def abandon(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """The rename itself must survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished images of processes that are gone."""
    for path in folder.glob("*.ktw.partial-*"):
        match = _PARTIAL.search(path.name)
        if match and not is_running(int(match[1])):
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class WeightStore:
    """Where the operators of a model take their matrices from: the file's blocks or an image.

    reader, writer: at most one of them. in_place: matrices stay in the image's file and are read
    from there by the page; with a writer, as soon as they are written.
    """

    def __init__(
        self,
        reader: ImageReader | None = None,
        writer: ImageWriter | None = None,
        in_place: bool = False,
    ):
        self.reader, self.writer, self.in_place = reader, writer, in_place
        self.on_part: Callable[[int], None] | None = None  # told the bytes of each part

    def matrices(self, context: "_core.Context", part: Stack | Blocks) -> list["_core.Matrix"]:
        """A list of as many matrices as the part has."""
        made = self.reader and self.reader.matrices(context, part, self.in_place)
        if not made:
            made = repack(context, part)
            if self.writer:
                self.writer.keep(context, part, made)
                if self.in_place:
                    made = self.writer.reread(context, part)
        if self.on_part:
            self.on_part(part.data.nbytes)
        return made

    def finish(self) -> None:
        """Completes an image that was being written."""
        if self.writer:
            self.writer.commit()

    def abandon(self) -> None:
        if self.writer:
            self.writer.abandon()
