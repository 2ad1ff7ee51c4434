"""How fast a model is loaded, and in how much memory.

    python -m bench.load                    a synthetic model of bench.cpu, cut to a few layers
    python -m bench.load --layers 16        the whole of it
    python -m bench.load --only warm,cold   some of the ways

warm: file in the page cache. cold: not in it, beside what its disk does. image: from the repacked
weights of an earlier start. group: cold and inside a memory control group of file + 15 % + cache,
swap off, with a few tokens generated. in place: in a group of half the file.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench import cpu_models, report
from bench.memory_group import MemoryGroup, NoGroups

WAYS = ("warm", "cold", "image", "group", "in place")
LENGTH = 512  # positions of the cache
MUSTS = {"warm": 2.5, "group": 1.0}
DISK_SHARE = 0.85


def run(job: dict) -> dict:
    """Our side: {"seconds" of the weights alone, "total", "token" seconds}."""
    import numpy as np

    from ktransformers.runtime.loading import load_model

    marks: list[float] = []

    def progress(done: int, total: int) -> None:
        marks.append(time.perf_counter())

    start = time.perf_counter()
    model = load_model(
        job["model"], cache_lens=LENGTH, progress=progress, weight_cache=job["weight_cache"],
        in_place=job["in_place"],
    )  # fmt: skip
    total = time.perf_counter() - start
    runtime = model.kt
    sequence = runtime.engine.kv.make_sequence()
    rng, spans = np.random.default_rng(1), []
    for position in range(job["tokens"]):
        token = rng.integers(300, 1000, 1).astype(np.int32)
        where, zero = np.array([position], np.int32), np.zeros(1, np.int32)
        before = time.perf_counter()
        runtime.evaluate(token, where, zero, False, [sequence], np.zeros(1, np.int64))
        spans.append(time.perf_counter() - before)
    token = sorted(spans)[len(spans) // 2] if spans else None
    return {"seconds": marks[-1] - marks[0], "total": total, "token": token}


def loaded(path: Path, group: MemoryGroup | None = None, **job) -> dict:
    """Runs our side in a process of its own. Raises: RuntimeError with its last words."""
    task = {"model": str(path), "weight_cache": None, "in_place": False, "tokens": 0} | job
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", "--worker"], input=json.dumps(task),
        capture_output=True, text=True, check=False, cwd=report.ROOT,
        preexec_fn=group.join if group else None,
    )  # fmt: skip
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise RuntimeError(words[0])
    return json.loads(done.stdout.splitlines()[-1])


def forget(path: Path) -> None:
    """Takes a file out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(path: Path) -> None:
    """Brings it in."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(16 << 20)
        while file.readinto(buffer):
            pass


def disk_gbps(path: Path, most: int = 4 << 30) -> float:
    """What the disk under a file reads, past the page cache: four readers of 8 MiB at a time."""
    size = min(path.stat().st_size, most) // (32 << 20) * (32 << 20)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(part: int) -> None:
        import mmap

        buffer = mmap.mmap(-1, 8 << 20)
        for at in range(part * (8 << 20), size, 32 << 20):
            os.preadv(fd, [buffer], at)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    return size / (time.perf_counter() - start) / 1e9


def fresh_gbps(nbytes: int = 1 << 30) -> float:
    """How fast the system hands out memory that nobody has written yet: no load can be faster. Far
    below the memory's bandwidth in a virtual machine whose host takes unused pages back."""
    import mmap

    region = mmap.mmap(-1, nbytes)
    region.madvise(mmap.MADV_HUGEPAGE)

    def touch(part: int) -> None:
        view = memoryview(region)[part * nbytes // 2 : (part + 1) * nbytes // 2]
        for at in range(0, len(view), 4096):
            view[at] = 1
        view.release()

    threads = [threading.Thread(target=touch, args=(i,)) for i in range(2)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    region.close()
    return nbytes / seconds / 1e9


def cache_bytes(path: Path) -> int:
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.runtime.loading import model_config
    from ktransformers.runtime.memory import memory_plan

    gguf = open_model(path)
    return memory_plan(gguf, model_config(gguf)[1], LENGTH, None).cache


def measure(way: str, path: Path, folder: Path) -> dict:
    """One row. Raises: RuntimeError, NoGroups."""
    size = path.stat().st_size
    row: dict = {"way": way, "fresh memory GB/s": fresh_gbps()}
    if way in ("warm", "image"):
        remember(path)
        cache = str(folder) if way == "image" else None
        if cache:
            loaded(path, weight_cache=cache)
        result = loaded(path, weight_cache=cache)
    elif way == "cold":
        forget(path)
        row["disk GB/s"] = disk_gbps(path)
        forget(path)
        result = loaded(path)
    elif way == "group":
        forget(path)
        with MemoryGroup(int(size * 1.15) + cache_bytes(path)) as group:
            result = loaded(path, group, tokens=8)
            row |= {"limit GB": group.limit / 1e9, "peak GB": group.peak / 1e9}
    else:
        forget(path)
        with MemoryGroup(size // 2 + (1 << 30)) as group:
            result = loaded(path, group, tokens=8, weight_cache=str(folder), in_place=True)
            row |= {"limit GB": group.limit / 1e9, "peak GB": group.peak / 1e9}
    row |= {"weights s": result["seconds"], "GB/s": size / result["seconds"] / 1e9}
    row |= {"total s": result["total"]}
    row["token ms"] = result["token"] and result["token"] * 1e3
    least = DISK_SHARE * row["disk GB/s"] if way == "cold" else MUSTS.get(way, 0.0)
    if way == "cold":
        least = min(least, MUSTS["warm"])
    row["verdict"] = (
        "" if not least or way == "group" else "ok" if row["GB/s"] >= least else "short"
    )
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, help="a GGUF file instead of the synthetic one")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        outcome = run(json.load(sys.stdin))
        print()
        print(json.dumps(outcome))
        return 0
    path = options.model or cpu_models.make(
        cpu_models.qwen3(options.layers), cpu_models.cache_folder()
    )
    print(report.header())
    print(f"{path.name}, {path.stat().st_size / 1e9:.2f} GB", flush=True)
    rows, folder = [], Path(tempfile.mkdtemp(prefix="weights-", dir=path.parent))
    try:
        for way in options.only.split(","):
            try:
                rows.append(measure(way, path, folder))
                cells = (f"{k} {v:.3g}" if isinstance(v, float) else str(v)
                         for k, v in rows[-1].items() if v not in (None, ""))  # fmt: skip
                print("  " + ", ".join(cells), flush=True)
            except (RuntimeError, NoGroups) as error:
                rows.append({"way": way, "error": str(error)})
                print(f"  {way}: {error}", flush=True)
    finally:
        shutil.rmtree(folder)
    path = report.write_json("load", {"rows": rows})
    print(f"figures in {path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
