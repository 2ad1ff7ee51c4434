"""One process of bench.fit_check: models and numbers of threads, times at several contexts.

A JSON list of jobs on standard input, the figures of each in a line of its own. Positions before
those that are timed are taken from the cache without being computed: their content does not change
how long it takes.
"""

import gc
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

CALM = 0.06  # CPUs used by others, and drift of the bandwidth, that need no other try


def cpu_seconds() -> tuple[float, float]:
    """(used by all processes of the machine, used by this one), so far."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    busy = sum(map(int, words[:3])) + sum(map(int, words[5:8]))
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK"), own.user + own.system


class Beside:
    """Times something between two measurements of the machine's limits, again where disturbed.

    Neighbours of a virtual machine take of its memory's bandwidth for minutes: a figure means
    something only beside the limits of its own moment. Of the tries kept, the worst: others, CPUs
    that other processes used; drift, the share by which the bandwidth before and after differs.
    """

    def __init__(self, context, tries: int = 4):
        self.context, self.tries, self.others, self.drift = context, tries, 0.0, 0.0

    def limits(self) -> dict:
        from ktransformers import _core

        return _core.measure_limits(self.context, 1 << 27, 2)

    def __call__(self, action) -> dict:
        """{seconds (what `action` returns), read_gbps, int8_tops} of the calmest try."""
        best, result = None, {}
        for _ in range(self.tries):
            before = self.limits()
            all_before, own_before = cpu_seconds()
            start = time.perf_counter()
            seconds = action()
            spent = time.perf_counter() - start
            all_after, own_after = cpu_seconds()
            after = self.limits()
            others = max(0.0, (all_after - all_before) - (own_after - own_before)) / spent
            both = [before["read_gbps"], after["read_gbps"]]
            drift = max(both) / min(both) - 1
            if best is None or others + drift < sum(best):
                best = (others, drift)
                result = {"seconds": seconds} | {
                    key: (before[key] + after[key]) / 2 for key in ("read_gbps", "int8_tops")
                }
            if others <= CALM and drift <= CALM:
                break
            time.sleep(0.3)
        self.others, self.drift = max(self.others, best[0]), max(self.drift, best[1])
        return result


def run(job: dict) -> dict:
    from ktransformers import _core
    from ktransformers.optimize.system import own_memory
    from ktransformers.runtime.loading import load_model

    beside = Beside(_core.Context(job["threads"]))
    before, start = own_memory(), time.perf_counter()
    cache = max(*job["contexts"], job["prompt"]) + job["prompt"] + 16 * job["decode"] + 64
    model = load_model(job["model"], cpu_infer=job["threads"], cache_lens=cache)
    loaded, memory = time.perf_counter() - start, own_memory() - before
    runtime, rng = model.kt, np.random.default_rng(5)
    vocab = runtime.decoder.vocab_size

    def step(sequence, count: int, is_prompt: bool) -> float:
        tokens = rng.integers(300, vocab, count).astype(np.int32)
        position = np.arange(sequence.length, sequence.length + count, dtype=np.int32)
        begin = time.perf_counter()
        runtime.evaluate(
            tokens, position, np.zeros(count, np.int32), is_prompt, [sequence],
            np.array([count - 1]),
        )  # fmt: skip
        return time.perf_counter() - begin

    def decoded(length: int) -> float:
        sequence = runtime.engine.kv.make_sequence()
        sequence.extend(length)
        step(sequence, 1, False)
        return median(step(sequence, 1, False) for _ in range(job["decode"]))

    def prompted(length: int) -> float:
        sequence = runtime.engine.kv.make_sequence()
        if length > job["prompt"]:
            sequence.extend(length)
        return step(sequence, job["prompt"], True)

    decode = {length: beside(lambda n=length: decoded(n)) for length in job["contexts"]}
    prompt = {length: beside(lambda n=length: prompted(n)) for length in job["contexts"]}
    return {"load_seconds": loaded, "memory": memory, "memory_after": own_memory() - before,
            "others_cpus": round(beside.others, 3), "drift": round(beside.drift, 3),
            "cache": cache, "decode": decode, "prompt": prompt}  # fmt: skip


if __name__ == "__main__":
    for one in json.load(sys.stdin):
        print("\n" + json.dumps(run(one)), flush=True)
        gc.collect()
