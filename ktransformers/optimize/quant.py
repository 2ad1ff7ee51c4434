"""Which type weights are loaded as where a rule says `auto`, and what became of it. No torch."""

from dataclasses import replace

from ktransformers.checkpoint.folder_model import FolderModel
from ktransformers.checkpoint.pieces import PLAIN, type_bytes
from ktransformers.optimize.plan import Plan
from ktransformers.optimize.system import available_memory

# From the most faithful down; what fits first is taken.
CANDIDATES = ("q8_0", "q6_k", "q5_k", "q4_k")
SHARE = 0.85  # of the memory that is free: the rest is for the cache and the system


def auto_quant(gguf, memory: int | None = None) -> str | None:
    """What `quant: auto` means for an open model: None (the file's types) for a GGUF; for what a
    folder has as floats the best of CANDIDATES with which all fits `memory` bytes (default: what is
    available). Integer codes of a folder stay as they are."""
    if not isinstance(gguf, FolderModel):
        return None
    room = SHARE * (available_memory() if memory is None else memory)
    values = 0
    for info in gguf.tensors.values():
        if info.type not in PLAIN:
            room -= info.nbytes
            continue
        count = 1
        for size in info.shape:
            count *= size
        values += count
    for kind in CANDIDATES:
        if type_bytes(kind, values // 256 * 256) <= room:
            return kind
    return CANDIDATES[-1]


def as_loaded(plan: Plan, gguf) -> Plan:
    """The plan with the types tensors really have: a type that was not good enough was left for a
    higher one while loading; a note names each, and counts those stored as integer codes."""
    rows, notes = [], folder_notes(gguf)
    coded = set(gguf.coded) if isinstance(gguf, FolderModel) else set()
    for row in plan.rows:
        types = {name: gguf.types.get(name, kind) for name, kind in row.types.items()}
        for name, kind in types.items():
            if kind != row.types[name] and name not in coded:
                notes.append(f"{name}: {kind} instead of {row.types[name]}, which is too coarse")
        rows.append(replace(row, types=types) if types != row.types else row)
    return replace(plan, rows=tuple(rows), notes=(*plan.notes, *notes))


def folder_notes(gguf) -> list[str]:
    """What a folder's integer codes could not be kept for, a line each."""
    return gguf.remarks() if isinstance(gguf, FolderModel) else []
