"""What this machine can do at most: the figures every benchmark divides by, from the same run.

    python -m bench.limits [--threads 1,2]

Read bandwidth on huge pages, peak of int8 dot products, peak of bf16 dot products, each with the
threads and the instruction set (KT_CPU_ISA) the benchmark uses.
"""

import argparse
import sys

from bench import report


def measure(threads: int = 0, context=None, gib: float = 1.0) -> dict:
    """Limits of `context`, or of a new one with `threads` (0: all cores).

    Keys: threads, isa, read_gbps, int8_tops, bf16_tflops, bf16_is_float32. int8_tops and
    bf16_tflops are 0 where the instruction set has no such instruction.
    """
    from ktransformers import _core

    return _core.measure_limits(context or _core.Context(threads), int(gib * 2**30))


def line(limits: dict) -> str:
    """One line for the head of a benchmark's output."""
    kind = "float32" if limits["bf16_is_float32"] else "bf16"
    return (
        f"limits of {limits['threads']} thread{'s' * (limits['threads'] != 1)} ({limits['isa']}): "
        f"read {limits['read_gbps']:.1f} GB/s, int8 {limits['int8_tops']:.2f} TOPS, "
        f"{kind} {limits['bf16_tflops']:.2f} TFLOPS"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__)
    parser.add_argument("--threads", default="1,0", help="thread counts, 0 for all cores")
    arguments = parser.parse_args(argv)
    print(report.header())
    for threads in arguments.threads.split(","):
        print(line(measure(int(threads))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
