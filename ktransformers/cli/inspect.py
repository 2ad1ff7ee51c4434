"""`ktransformers inspect`: what a GGUF file holds, read without torch."""

import json
from collections import Counter
from typing import Any

from ktransformers.checkpoint.gguf import open_model

LONGEST_LIST = 8  # values of a metadata array that are printed


def size(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def plain(value: Any) -> Any:
    """A metadata value as JSON can hold it."""
    return value.tolist() if hasattr(value, "tolist") else value


def shown(value: Any) -> str:
    """A metadata value on one line, long ones cut."""
    value = plain(value)
    if isinstance(value, list):
        head = ", ".join(json.dumps(v, ensure_ascii=False) for v in value[:LONGEST_LIST])
        return f"[{head}{', ...' if len(value) > LONGEST_LIST else ''}] ({len(value)} values)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}... ({len(text)} characters)"


def totals(tensors: dict) -> list[tuple[str, int, int]]:
    """(type, number of tensors, bytes), largest first."""
    count, total = Counter(), Counter()
    for tensor in tensors.values():
        count[tensor.type] += 1
        total[tensor.type] += tensor.nbytes
    return [(kind, count[kind], nbytes) for kind, nbytes in total.most_common()]


def run(path: str, show_tensors: bool, as_json: bool) -> None:
    """Prints metadata, the types' totals and, if asked, every tensor."""
    model = open_model(path)
    if as_json:
        tensors = [
            {"name": t.name, "type": t.type, "shape": list(t.shape), "bytes": t.nbytes}
            for t in model.tensors.values()
        ]
        metadata = {key: plain(value) for key, value in model.metadata.items()}
        print(json.dumps({"metadata": metadata, "tensors": tensors}, ensure_ascii=False))
        return
    print(f"architecture: {model.architecture}")
    for key, value in model.metadata.items():
        print(f"  {key} = {shown(value)}")
    if show_tensors:
        print("tensors (shape as torch has it):")
        for t in model.tensors.values():
            print(f"  {t.name:<40} {t.type:<8} {'x'.join(map(str, t.shape)):<20} {size(t.nbytes)}")
    print("types:")
    for kind, count, nbytes in totals(model.tensors):
        print(f"  {kind:<8} {count:>6} tensors  {size(nbytes):>10}")
    nbytes = sum(t.nbytes for t in model.tensors.values())
    print(f"  {'all':<8} {len(model.tensors):>6} tensors  {size(nbytes):>10}")
