"""A model file or folder becomes a GGUF file with weights of other types, tensor by tensor.

Memory is a few rows per thread beside the file's pages. What was written survives an interruption:
"OUT.part" holds the tensors that are done and "OUT.part.json" how many, and the same command goes
on behind them. OUT appears when it is complete, never before. No torch.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktransformers import _core
from ktransformers.checkpoint.folder_model import FolderModel
from ktransformers.checkpoint.gguf import GGUFFile
from ktransformers.checkpoint.pieces import (
    KEPT_HIGHER,
    Outcome,
    Requantizer,
    check_finite,
    type_bytes,
)
from ktransformers.errors import UserError

SYNC_BYTES = 1 << 30  # how much an interruption may cost, at most one tensor more


@dataclass
class Report:
    """What was written. outcomes: of the tensors converted in this run; resumed: tensors an
    earlier run had done."""

    path: str
    nbytes: int = 0
    resumed: int = 0
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def quantize_model(
    model: GGUFFile,
    out: str | Path,
    types: Mapping[str, str],
    file_type: int | None = None,
    threads: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    extra: Mapping[str, tuple[str, Any]] | None = None,
) -> Report:
    """Writes every tensor of `model` as `types` says.

    file_type: `general.file_type` of the result. progress(bytes done, bytes in all, tensor).
    extra: further keys, {key: (type, value)}.
    Raises: UserError for a file that is there, too little room, or values no type can hold.
    """
    out = Path(out)
    check_target(model, out, sum(tensor_bytes(model, types).values()))
    threads = threads or _core.cpu_info()["default_threads"]
    writer = _core.GgufWriter(str(out), keep=True)
    report = Report(str(out))
    try:
        write_keys(writer, model, file_type, extra or {})
        for name, info in model.tensors.items():
            writer.add_tensor(name, types[name], info.shape)
        journal = Journal(out, fingerprint(model))
        done = journal.done
        report.resumed = done if writer.resume(done) else 0
        _write_tensors(writer, model, types, threads, report, journal, progress)
        writer.finish()
        journal.remove()
    except (ValueError, NotImplementedError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from error
    report.nbytes = out.stat().st_size
    return report


def _write_tensors(writer, model, types, threads, report, journal, progress) -> None:
    sizes = tensor_bytes(model, types)
    total, at, unsafe = sum(sizes.values()), 0, 0
    for number, name in enumerate(model.tensors):
        if number < report.resumed:
            at += sizes[name]
            continue
        requantizer = Requantizer(types[name], threads)
        for piece in model.pieces(name):
            for chunk in requantizer.chunks(piece):
                writer.write(chunk)
                at += chunk.size
                unsafe += chunk.size
                if progress:
                    progress(at, total, name)
            if isinstance(model, FolderModel):
                model.drop(piece)
        outcome = requantizer.outcome
        check_finite(name, outcome, model.path)
        if outcome.out_of_range:
            other = KEPT_HIGHER.get(types[name]) if outcome.is_kept else None
            other = "bf16" if other in (None, types[name]) else other
            raise UserError(
                f"{model.path}: {name}: {outcome.out_of_range} values are out of the range of "
                f"{types[name]}; add --tensor '^{name}$={other}'"
            )
        if trouble := outcome.trouble():
            report.notes.append(f"{name} as {types[name]}: {trouble}")
        report.outcomes[name] = outcome
        model.advise(name, "dontneed")
        if unsafe >= SYNC_BYTES:
            writer.sync()
            journal.write(number + 1)
            unsafe = 0


def tensor_bytes(model: GGUFFile, types: Mapping[str, str]) -> dict[str, int]:
    """{tensor: bytes in the result}."""
    sizes = {}
    for name, info in model.tensors.items():
        count = 1
        for size in info.shape:
            count *= size
        sizes[name] = type_bytes(types[name], count)
    return sizes


def write_keys(writer, model, file_type, extra) -> None:
    """All keys of the model, but for those about the file itself."""
    ours = {"general.quantization_version": ("u32", 2)} | dict(extra)
    if file_type is not None:
        ours["general.file_type"] = ("u32", file_type)
    left_out = {"general.alignment", *ours}
    for key in model.metadata:
        if key in left_out or key.startswith("split."):
            continue
        if isinstance(model, FolderModel):
            writer.add(key, model.metadata.type_of(key), model.metadata[key])
        else:
            writer.copy_key(model._core, key)
    for key, (kind, value) in ours.items():
        writer.add(key, kind, value)


def check_target(model: GGUFFile, out: Path, nbytes: int) -> None:
    """Raises: UserError where the result cannot be written."""
    if out.exists():
        raise UserError(f"{out}: is there already; choose another name or remove it")
    if out.suffix.lower() != ".gguf":
        raise UserError(f"{out}: the result is a GGUF file, end its name in .gguf")
    parent = out.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{parent}: no folder that can be written to")
    part = Path(f"{out}.part")
    have = shutil.disk_usage(parent).free + (part.stat().st_size if part.exists() else 0)
    if nbytes > have:
        raise UserError(f"{out}: needs {nbytes / 1e9:.1f} GB, {have / 1e9:.1f} GB are free there")


def fingerprint(model: GGUFFile) -> list:
    """What tells whether the source is still the one an unfinished file was made from."""
    paths = [Path(p) for p in model.paths]
    if isinstance(model, FolderModel):
        paths = [model.folder.path / "config.json", *model.stored.paths]
    facts = [(str(path.resolve()), path.stat()) for path in paths]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]


class Journal:
    """How many tensors of an unfinished file are safe on the disk, and what it is made from."""

    def __init__(self, out: Path, source: list):
        self.path = Path(f"{out}.part.json")
        self.source = source

    @property
    def done(self) -> int:
        """Tensors an earlier run of the same conversion has written; 0 where there was none."""
        try:
            values = json.loads(self.path.read_text())
            same = values["source"] == self.source and type(values["done"]) is int
            return values["done"] if same and values["done"] > 0 else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def write(self, done: int) -> None:
        """Replaces the journal; call it after the writer's sync."""
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump({"source": self.source, "done": done}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
