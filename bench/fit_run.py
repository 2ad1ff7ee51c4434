"""One process of bench.fit_check: a model and a number of threads, times at several contexts.

A job in JSON on standard input, its figures in the last line of the output. Positions before
those that are timed are taken from the cache without being computed: their content does not change
how long it takes.
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from bench.moments import Moments

CALM = 0.06  # CPUs used by others, and drift of the bandwidth, that need no other try
WARM = 3.0  # seconds of decoding before the first figure: fresh memory is slower to read


def cpu_seconds() -> tuple[float, float]:
    """(used by all processes of the machine, used by this one), so far."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    busy = sum(map(int, words[:3])) + sum(map(int, words[5:8]))
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK"), own.user + own.system


def halves_apart(values: list[float]) -> float:
    """The share by which the medians of the first and the second half of a series differ."""
    middle = len(values) // 2
    both = [median(values[:middle]), median(values[middle:])]
    return max(both) / min(both) - 1


class Beside:
    """Times something in turns with the machine's limits, again where disturbed.

    Of the tries kept, the worst: others, CPUs that other processes used; drift, the share by which
    the limit that matters, in the first and in the second half of a try, differ.
    """

    def __init__(self, context, tries: int = 3):
        self.tries, self.others, self.drift = tries, 0.0, 0.0
        self.moments = Moments(context)

    def steps(self, step, count: int) -> dict:
        """Of `count` short steps, each between two readings of the memory, the one that is median
        in bytes that could have been read meanwhile."""
        int8, left = [], iter(range(count))

        def one() -> float:
            if next(left) % 4 == 0:
                int8.append(self.moments.int8())
            return step()

        seconds, reads = self.moments.between(one, count)
        pairs = [(s, (a + b) / 2) for s, a, b in zip(seconds, reads, reads[1:], strict=False)]
        pairs.sort(key=lambda pair: pair[0] * pair[1])
        middle, read = pairs[count // 2]
        return {"seconds": middle, "read_gbps": read, "int8_tops": median(int8),
                "drift": halves_apart(reads)}  # fmt: skip

    def long(self, step, rounds: int) -> dict:
        """The round of median arithmetic, which is the median of seconds times the int8 limit."""
        made = []
        for _ in range(rounds):
            reads = [self.moments.read() for _ in range(3)]
            int8 = [self.moments.int8() for _ in range(3)]
            seconds = step()
            reads += [self.moments.read() for _ in range(3)]
            int8 += [self.moments.int8() for _ in range(3)]
            made.append({"seconds": seconds, "read_gbps": median(reads),
                         "int8_tops": median(int8), "drift": halves_apart(int8)})  # fmt: skip
        made.sort(key=lambda one: one["seconds"] * one["int8_tops"])
        return made[len(made) // 2]

    def calmest(self, measure) -> dict:
        """{seconds, read_gbps, int8_tops} of the least disturbed try of measure()."""
        best, result = None, {}
        for _ in range(self.tries):
            all_before, own_before = cpu_seconds()
            start = time.perf_counter()
            found = measure()
            spent = time.perf_counter() - start
            all_after, own_after = cpu_seconds()
            others = max(0.0, (all_after - all_before) - (own_after - own_before)) / spent
            drift = found.pop("drift")
            if best is None or others + drift < sum(best):
                best, result = (others, drift), found
            if others <= CALM and drift <= CALM:
                break
            time.sleep(0.3)
        self.others, self.drift = max(self.others, best[0]), max(self.drift, best[1])
        return result


def run(job: dict) -> dict:
    from ktransformers.optimize.system import own_memory
    from ktransformers.runtime.loading import load_model

    before, start = own_memory(), time.perf_counter()
    cache = max(*job["contexts"], job["prompt"]) + job["prompt"] + 4 * job["decode"] + 64
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

    beside = Beside(runtime.engine.context)
    begin, sequence = time.perf_counter(), runtime.engine.kv.make_sequence()
    while time.perf_counter() - begin < WARM:
        step(sequence, 1, False)
        if sequence.length > job["prompt"]:
            sequence = runtime.engine.kv.make_sequence()
    del sequence  # and its pages

    def decoded(length: int) -> dict:
        sequence = runtime.engine.kv.make_sequence()
        sequence.extend(length)
        step(sequence, 1, False)
        return beside.steps(lambda: step(sequence, 1, False), job["decode"])

    def prompted(length: int) -> dict:
        def once() -> float:
            sequence = runtime.engine.kv.make_sequence()
            if length > job["prompt"]:
                sequence.extend(length)
            return step(sequence, job["prompt"], True)

        return beside.long(once, job["rounds"])

    decode = {length: beside.calmest(lambda n=length: decoded(n)) for length in job["contexts"]}
    prompt = {length: beside.calmest(lambda n=length: prompted(n)) for length in job["contexts"]}
    del beside.moments  # whose memory is not the model's
    return {"load_seconds": loaded, "memory": memory, "memory_after": own_memory() - before,
            "others_cpus": round(beside.others, 3), "drift": round(beside.drift, 3),
            "cache": cache, "decode": decode, "prompt": prompt}  # fmt: skip


if __name__ == "__main__":
    print("\n" + json.dumps(run(json.load(sys.stdin))))
