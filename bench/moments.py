"""The machine's limits, a single pass at a time, to stand beside what is timed in between.

Neighbours of a virtual machine take of its memory's bandwidth within milliseconds and for minutes:
a figure means something only beside the limits of its own moment.
"""

from collections.abc import Callable
from statistics import median

PASSES = 3  # beside what takes longer than a moment


class Moments:
    """Limits of a context's threads and instruction set; holds 128 MiB to read."""

    def __init__(self, context):
        from ktransformers import _core

        self.context = context
        self.meter = _core.LimitMeter(context)

    def read(self) -> float:
        return self.meter.read_gbps(self.context)

    def int8(self) -> float:
        return self.meter.int8_tops(self.context)

    def between(self, step: Callable[[], float], count: int) -> tuple[list[float], list[float]]:
        """Seconds of `count` short steps, and the readings around them: one more of those."""
        seconds, reads = [], [self.read()]
        for _ in range(count):
            seconds.append(step())
            reads.append(self.read())
        return seconds, reads

    def pairs(self, step: Callable[[], float], count: int) -> list[dict]:
        """{seconds, read_gbps} of each of `count` short steps, between two readings."""
        seconds, reads = self.between(step, count)
        both = zip(seconds, reads, reads[1:], strict=False)
        return [{"seconds": s, "read_gbps": (a + b) / 2} for s, a, b in both]

    def limits(self, passes: int = PASSES) -> dict[str, float]:
        """Medians of a few passes of each kind."""
        bf16 = [self.meter.bf16_tflops(self.context) for _ in range(passes)]
        return {
            "read_gbps": median(self.read() for _ in range(passes)),
            "int8_tops": median(self.int8() for _ in range(passes)),
            "bf16_tflops": median(bf16),
        }

    def beside(self, step: Callable[[], float], passes: int = PASSES) -> dict:
        """{seconds, read_gbps, int8_tops, bf16_tflops} of a long step, of limits around it."""
        before = self.limits(passes)
        seconds = step()
        after = self.limits(passes)
        return {"seconds": seconds} | {kind: (before[kind] + after[kind]) / 2 for kind in before}
