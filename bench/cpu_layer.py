"""One MoE layer of DeepSeek-V3 width, 64 of its experts: ours and kt-kernel, which is that only.

The weights are the first experts of the synthetic v3 model's MoE layer. Run as a module it is our
side, a process that answers lines.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import report
from bench.answering import answer
from bench.cpu_engine import EngineFailed, started
from bench.cpu_run import Pair
from bench.cpu_turns import RECORDED, compared, floor_of, is_recorded, verdict
from bench.cpu_verdict import PEER_MARGIN, RATES
from bench.cpu_work import uniform_distinct

EXPERTS, USED, LAYER = 64, 8, 1
FORWARDS = 20  # of one token, in a turn
MUSTS = {1: 4.0, 512: 2.9}  # times as fast as kt-kernel


def job_for(path: Path, threads: int) -> dict:
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
        "longest": max(MUSTS),
    }  # fmt: skip


class OurLayer:
    """Our side: the layer in a process that answers lines."""

    def __init__(self, job: dict):
        from bench.moments import Moments
        from ktransformers import _core

        self.job, self.core, self.rng = job, _core, np.random.default_rng(7)
        start = time.perf_counter()
        self.context = context = _core.Context(job["threads"])
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
        self.layer = _core.Experts(*parts)
        self.moments = Moments(context)
        self.facts = {
            "engine": f"ktransformers {context.isa}", "isa": context.isa, "activations": "auto",
            "threads": context.threads, "load_seconds": time.perf_counter() - start,
        }  # fmt: skip

    def limits(self) -> dict[str, float]:
        return self.moments.limits()

    def forward(self, tokens: int, times: int) -> list[dict]:
        """Seconds of each forward beside limits, the first not counted where they are short."""
        x = self.rng.standard_normal((tokens, self.job["hidden"]), np.float32)
        share = np.full((tokens, self.job["used"]), 1.0 / self.job["used"], np.float32)
        # As in a model: a token alone is generated, many are a prompt behind its first positions.
        position = np.arange(64, 64 + tokens, dtype=np.int32)
        rounding = self.core.rounding(self.core.Arithmetic.AUTO, position, tokens > 1)

        def once() -> float:
            ids = np.argsort(self.rng.random((tokens, self.job["experts"])), axis=1)
            ids = np.ascontiguousarray(ids[:, : self.job["used"]], np.int32)
            start = time.perf_counter()
            self.layer.forward(self.context, x, ids, share, rounding)
            return time.perf_counter() - start

        if tokens > 1:
            return [self.moments.beside(once) for _ in range(times)]
        once()
        return self.moments.pairs(once, times)


def measure(path: Path, threads: int, turns: dict[int, int], say: Callable) -> dict:
    """{"engines", "missing", "turns", "rows"}; turns: of forwards of so many tokens."""
    found: dict = {"engines": {}, "missing": {}, "turns": {}}
    job, loaded = job_for(path, threads or len(os.sched_getaffinity(0))), []
    try:
        for name in ("kt-kernel", "ours"):
            try:
                engine = started(name, job, "bench.cpu_layer", "bench.peer_kt_kernel")
            except EngineFailed as error:
                found["missing"][name] = str(error)
                say(f"  {name}: {error}")
                continue
            loaded.append(engine)
            found["engines"][name] = engine.facts
        pair = Pair(loaded)
        for tokens, count in turns.items():
            times = FORWARDS if tokens == 1 else 1
            label = label_of(tokens)
            try:
                made = [pair.forward(turn, tokens, times) for turn in range(count)]
            except EngineFailed as error:
                found["missing"][error.engine] = str(error)
                say(f"  {label}: {error.engine}: {error}")
                break
            found["turns"][label] = made
    finally:
        for engine in loaded:
            engine.end()
    return found | {"rows": rows_of(job, found, report.machine())}


def label_of(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def least_seconds(job: dict, tokens: int, pair: dict) -> float | None:
    """What a forward takes at least at the limits of its moment."""
    share = uniform_distinct(job["experts"], job["used"], tokens) / job["experts"]
    read = job["nbytes"] * share / pair["read_gbps"] / 1e9
    if tokens == 1:
        return read
    ops = 2 * 3 * job["hidden"] * job["intermediate"] * job["used"] * tokens
    return max(read, ops / pair["int8_tops"] / 1e12) if pair["int8_tops"] else None


def rows_of(job: dict, found: dict, machine: dict) -> list[dict]:
    """Figures of bench.cpu_turns.compared, in ms (ours, peer, limit), with the verdict."""
    rows = []
    isa = found["engines"].get("ours", {}).get("isa", "")
    for label, turns in found["turns"].items():
        tokens = int(label.split()[0])
        row = {"work": label, "engine": "ours", "peer_engine": "kt-kernel"}
        row |= compared(
            label, turns, lambda pair, tokens=tokens: least_seconds(job, tokens, pair),
            floor_of(label, machine, isa),
        )  # fmt: skip
        for name, seconds in RATES.items():
            row[name] = row[seconds] and row[seconds] * 1e3
        known = RECORDED["kt-kernel"][tokens]
        is_slow = row["peer"] and row["peer"] > known / PEER_MARGIN
        if is_slow and not row["void"] and is_recorded(machine):
            row["void"] = f"kt-kernel {row['peer']:.1f} ms, known to take {known}"
        row["must"] = f"{MUSTS[tokens]:.1f}x"
        row["verdict"] = verdict([(row["ratio"], MUSTS[tokens])], row["void"])
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(answer(OurLayer))
