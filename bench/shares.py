"""Decoding on a part of the machine: one core by affinity, a part of the cores by quota, too many
threads.

    python -m bench.shares              SmolLM2-135M
    python -m bench.shares --model FILE

Every case is held against its share of what the whole machine decodes in the same run; at least
80 % of that is wanted, and that nothing hangs. Quotas need the right to make control groups.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import report
from bench.memory_group import NoGroups, new_group

WANTED = 0.80
TOKENS = 96
PERIOD = 100_000  # microseconds


def worker(job: dict) -> dict:
    """{"tokens/s", "threads"} of a process that is limited from outside."""
    import numpy as np

    from ktransformers.runtime.loading import load_model

    model = load_model(job["model"], cpu_infer=job["threads"], cache_lens=512)
    sequence, rng = model.kt.engine.kv.make_sequence(), np.random.default_rng(1)
    zero = np.zeros(1, np.int64)

    def decode(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            where = np.array([sequence.length], np.int32)
            token = rng.integers(300, 1000, 1).astype(np.int32)
            model.kt.evaluate(token, where, np.zeros(1, np.int32), False, [sequence], zero)
        return time.perf_counter() - start

    decode(16)
    return {"tokens/s": TOKENS / decode(TOKENS), "threads": model.kt.engine.context.threads}


def measured(model: Path, threads: int | None, limit: Callable[[], None] | None) -> dict:
    """Raises: RuntimeError with the worker's last words, or when it hangs."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.shares", "--worker"], capture_output=True, text=True,
            input=json.dumps({"model": str(model), "threads": threads}), cwd=report.ROOT,
            check=False, preexec_fn=limit, timeout=300,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError("hangs") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no words"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


class CpuQuota:
    """with CpuQuota(0.5) as group: a control group of half a core. Raises: NoGroups."""

    def __init__(self, cores: float):
        self.cores = cores

    def __enter__(self) -> "CpuQuota":
        self.folder, is_v2 = new_group("cpu", "cpu.max", "cpu.cfs_quota_us")
        quota = int(self.cores * PERIOD)
        name, text = ("cpu.max", f"{quota} {PERIOD}") if is_v2 else ("cpu.cfs_quota_us", quota)
        (self.folder / name).write_text(str(text))
        return self

    def join(self) -> None:
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def __exit__(self, *_) -> None:
        self.folder.rmdir()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shares", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, help="a GGUF file instead of SmolLM2")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        outcome = worker(json.load(sys.stdin))
        print()
        print(json.dumps(outcome))
        return 0
    from tests.support import smollm2

    model = options.model or Path(smollm2.dense_path())
    cpus = sorted(os.sched_getaffinity(0))
    whole = measured(model, None, None)
    one = measured(model, 1, None)
    print(report.header())
    rows = [["the whole machine", whole["threads"], whole["tokens/s"], None]]

    def add(name: str, share: float, threads=None, limit=None) -> None:
        try:
            got = measured(model, threads, limit)
            kept = got["tokens/s"] / (one["tokens/s"] * share if share <= 1 else whole["tokens/s"])
            rows.append([name, got["threads"], got["tokens/s"], kept])
        except RuntimeError as error:
            rows.append([f"{name}: {error}", None, None, None])

    add("one core by affinity", 1.0, None, lambda: os.sched_setaffinity(0, cpus[:1]))
    add("four threads per core", 2.0, 4 * len(cpus))
    for cores in (0.5, 1.0):
        try:
            with CpuQuota(cores) as group:
                add(f"{cores} cores by quota", cores, None, group.join)
        except NoGroups as error:
            rows.append([f"{cores} cores by quota: {error}", None, None, None])
    print(report.table(["case", "threads", "tokens/s", "of its share"], rows))
    kept = [row[3] for row in rows if row[3] is not None]
    print(f"least {min(kept):.2f}, wanted {WANTED}: {'ok' if min(kept) >= WANTED else 'short'}")
    path = report.write_json("shares", {"rows": rows})
    print(f"figures in {path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
