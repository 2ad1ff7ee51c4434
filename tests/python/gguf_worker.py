"""Opens damaged GGUF files, where a crash or a huge allocation does no harm; prints JSON.

    python tests/python/gguf_worker.py open FOLDER       every file there
    python tests/python/gguf_worker.py mutate FILE END   every truncation, and every byte before END
                                                         with each bit flipped, zeroed, all ones

A verdict is ["accepted", ""] (everything in the file was then read), ["refused", the message], or
["failed", what was raised instead of a UserError]; `open` adds CPU seconds and growth in bytes.
While a file is open the process may not map more than the file and 64 MiB above what it had at the
start.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from ktransformers.checkpoint.gguf import open_model
from ktransformers.errors import UserError

SPARE = 64 << 20


def mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def verdict(path: Path) -> list[str]:
    try:
        model = open_model(path)
        for key in model.metadata:
            if model.metadata.count_of(key) < 1 << 20:
                model.metadata[key]
        for name in model.tensors:
            int(model.data(name)[::4096].sum(dtype=np.int64))
    except UserError as error:
        message = str(error)
        told = str(path) in message and "\n" not in message and len(message) < 600
        return ["refused" if told else "failed", message]
    except BaseException as error:
        return ["failed", f"{type(error).__name__}: {error}"]
    return ["accepted", ""]


def limited(path: Path, base: int) -> list[str]:
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (base + size + SPARE, resource.RLIM_INFINITY))
    try:
        return verdict(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def open_all(folder: Path) -> dict:
    base, results = mapped_bytes(), {}
    for path in sorted(folder.iterdir()):
        peak, start = peak_bytes(), time.process_time()
        found = limited(path, base)
        seconds = time.process_time() - start
        results[path.name] = [*found, seconds, peak_bytes() - peak - path.stat().st_size]
    return results


def mutations(content: bytes, end: int):
    for size in range(len(content)):
        yield f"cut {size}", content[:size]
    for place in range(end):
        byte = content[place]
        for new in {byte ^ 1 << bit for bit in range(8)} | {0, 0xFF}:
            if new != byte:
                yield f"{place}={new:02x}", content[:place] + bytes([new]) + content[place + 1 :]


def mutate(path: Path, end: int) -> dict:
    content, base = path.read_bytes(), mapped_bytes()
    counts, failed, cuts = {"accepted": 0, "refused": 0, "failed": 0}, {}, []
    target = path.with_name("mutated.gguf")
    for name, changed in mutations(content, end):
        target.write_bytes(changed)
        kind, message = limited(target, base)
        counts[kind] += 1
        if kind == "failed":
            failed[name] = message
        if kind == "accepted" and name.startswith("cut"):
            cuts.append(name)
    return {"counts": counts, "failed": failed, "accepted cuts": cuts}


def main() -> None:
    if sys.argv[1] == "open":
        result = open_all(Path(sys.argv[2]))
    else:
        result = mutate(Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(result))


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
