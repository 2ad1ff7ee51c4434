"""Speed of the CPU kernels of every weight format against what this machine can do at most.

    python -m bench.kernels [decode] [--formats q4_k,q6_k] [--threads 1,0] [--tokens 1]

Prints a table and writes bench/results/kernels_<part>_<isa>.json. KT_CPU_ISA chooses the
instruction set.
"""

import argparse
import sys

from bench import kernels_decode, report


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("part", nargs="?", default="decode", choices=["decode"])
    parser.add_argument("--formats", default="", help="names, comma-separated; default all")
    parser.add_argument("--threads", type=numbers, default=[1, 0], help="0 for all cores")
    parser.add_argument("--tokens", type=numbers, default=[1], help="rows of activations")
    parser.add_argument("--no-peer", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--gib", type=float, default=1.0, help="memory to rotate through")
    arguments = parser.parse_args(argv)
    formats = [name for name in arguments.formats.split(",") if name]
    print(report.header(), flush=True)
    found = kernels_decode.measure(
        formats, arguments.threads, arguments.tokens, arguments.gib, not arguments.no_peer
    )
    print(kernels_decode.show(found))
    path = report.write_json(f"kernels_{arguments.part}_{found['isa']}", found)
    print(f"written to {path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
