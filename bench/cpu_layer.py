"""One MoE layer of DeepSeek-V3 width, 64 of its experts: ours and kt-kernel, which is that only.

The weights are the first experts of the synthetic v3 model's MoE layer. Run as a module it is our
side: a JSON job on standard input, seconds on the last line.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from bench.cpu_work import uniform_distinct

EXPERTS, USED, LAYER = 64, 8, 1
TOKENS = (1, 512)
MUSTS = {1: 4.0, 512: 2.9}  # times as fast as kt-kernel
RECORDED_MS = {1: 16.0, 512: 1752.0}  # kt-kernel on the machine of bench.cpu_verdict


def job_for(path: Path, threads: int, repeats: int) -> dict:
    from ktransformers.checkpoint.gguf import open_model

    gguf = open_model(path)
    tensors, nbytes = {}, 0
    for name in ("gate", "up", "down"):
        info = gguf.tensor(f"blk.{LAYER}.ffn_{name}_exps.weight")
        count = info.nbytes // info.shape[0] * EXPERTS
        tensors[name] = (info.offset, count)
        nbytes += count
    hidden, intermediate = info.shape[1], info.shape[2]
    return {
        "model": str(path), "tensors": tensors, "nbytes": nbytes, "experts": EXPERTS,
        "used": USED, "hidden": hidden, "intermediate": intermediate, "threads": threads,
        "tokens": list(TOKENS), "repeats": repeats,
    }  # fmt: skip


def run(job: dict) -> dict:
    """Our seconds of each forward: {"engine", "seconds": {tokens: [...]}}."""
    from ktransformers import _core

    context = _core.Context(job["threads"])
    hidden, inner = job["hidden"], job["intermediate"]
    shapes = {
        "gate": ("q4_k", inner, hidden),
        "up": ("q4_k", inner, hidden),
        "down": ("q6_k", hidden, inner),
    }
    parts = []
    for name, (kind, rows, cols) in shapes.items():
        offset, count = job["tensors"][name]
        data = np.memmap(job["model"], np.uint8, "r", offset, count).reshape(job["experts"], -1)
        parts.append([_core.Matrix(context, one, kind, rows, cols, name) for one in data])
        del data
    layer = _core.Experts(*parts)
    rng = np.random.default_rng(7)
    seconds: dict[str, list[float]] = {}
    for count in job["tokens"]:
        x = rng.standard_normal((count, hidden), np.float32)
        share = np.full((count, job["used"]), 1.0 / job["used"], np.float32)
        # As in a model: a token alone is generated, many are a prompt behind its first positions.
        position = np.arange(64, 64 + count, dtype=np.int32)
        rounding = _core.rounding(_core.Arithmetic.AUTO, position, count > 1)
        times = []
        for _ in range(job["repeats"] if count > 1 else 20 * job["repeats"]):
            ids = np.argsort(rng.random((count, job["experts"])), axis=1)
            ids = np.ascontiguousarray(ids[:, : job["used"]], np.int32)
            start = time.perf_counter()
            layer.forward(context, x, ids, share, rounding)
            times.append(time.perf_counter() - start)
        seconds[str(count)] = times
    return {"engine": f"ktransformers {context.isa}", "seconds": seconds}


def measure(path: Path, threads: int, repeats: int, limits: dict, say) -> dict:
    """Both engines in alternating order -> rows with ms, limit and ratio, printed by the caller."""
    from bench import peers
    from bench.cpu_run import EngineFailed, last_line

    job = job_for(path, threads, repeats)
    found: dict[str, dict[str, list[float]]] = {}
    names: dict[str, str] = {}
    peer = Path(__file__).with_name("peer_kt_kernel.py")
    commands = {
        "ours": [sys.executable, "-m", "bench.cpu_layer"],
        "kt-kernel": [str(peers.PYTHON), str(peer)],
    }
    for engine in ("ours", "kt-kernel", "ours"):
        if engine == "kt-kernel" and not peers.PYTHON.exists():
            say("  kt-kernel: not installed: run `make peers`")
            continue
        try:
            result = last_line(commands[engine], job)
        except (EngineFailed, subprocess.TimeoutExpired) as error:
            say(f"  {engine}: {error}")
            continue
        names[engine] = result["engine"]
        for tokens, times in result["seconds"].items():
            found.setdefault(engine, {}).setdefault(tokens, []).append(median(times))
    return {"engines": names, "seconds": found, "rows": rows_of(job, found, limits)}


def rows_of(job: dict, found: dict, limits: dict) -> list[dict]:
    rows = []
    values = 3 * job["hidden"] * job["intermediate"]
    for tokens in job["tokens"]:
        ours = min(found.get("ours", {}).get(str(tokens), []), default=None)
        peer = min(found.get("kt-kernel", {}).get(str(tokens), []), default=None)
        share = uniform_distinct(job["experts"], job["used"], tokens) / job["experts"]
        least = job["nbytes"] * share / limits["read_gbps"] / 1e9
        if limits["int8_tops"]:
            halves = 2 if tokens == 1 else 1
            ops = 2 * values * job["used"] * tokens * halves
            least = max(least, ops / limits["int8_tops"] / 1e12)
        row = {"tokens": tokens, "limit ms": least * 1e3}
        row |= {"ours ms": ours and ours * 1e3, "kt-kernel ms": peer and peer * 1e3}
        row |= {"fraction": ours and least / ours, "ratio": ours and peer and peer / ours}
        row["must"] = f"{MUSTS[tokens]:.1f}x"
        if row["ratio"]:
            row["verdict"] = "ok" if row["ratio"] >= MUSTS[tokens] else "short"
        rows.append(row)
    return rows


if __name__ == "__main__":
    outcome = run(json.load(sys.stdin))
    print()
    print(json.dumps(outcome))
