"""Speed of the CPU kernels of every weight format against what this machine can do at most.

    python -m bench.kernels                 all of it on every instruction set this machine can run
    python -m bench.kernels decode          one part, on the set that KT_CPU_ISA names or the best
    python -m bench.kernels prompt --formats q4_k,q6_k --threads 1,0 --tokens 32,128
    python -m bench.kernels --write         puts what was measured last into docs/cpu.md

decode: share of the read bandwidth that products of few tokens get. prompt: share of the peak of
int8 products that those of many get. numerics: what either rounding of activations loses against
float64. Prints tables and writes bench/results/kernels_<part>_<isa>.json; all of it together writes
bench/results/kernels.json and .png.
"""

import argparse
import sys

from bench import kernels_all, kernels_decode, kernels_numerics, kernels_prompt, report

PARTS = {"decode": kernels_decode, "prompt": kernels_prompt, "numerics": kernels_numerics}
TOKENS = {"decode": [1], "prompt": [128]}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("part", nargs="?", default="all", choices=["all", *PARTS])
    parser.add_argument("--formats", default="", help="names, comma-separated; default all")
    parser.add_argument("--threads", type=numbers, help="0 for all cores; default 1,0 (prompt: 0)")
    parser.add_argument("--tokens", type=numbers, help="rows of activations; default 1 or 128")
    parser.add_argument("--no-peer", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--gib", type=float, default=1.0, help="memory to rotate through")
    parser.add_argument("--write", action="store_true", help="the page only; nothing is measured")
    arguments = parser.parse_args(argv)
    if arguments.write:
        return kernels_all.write()
    if arguments.part in ("all", "numerics") and (arguments.threads or arguments.tokens):
        parser.error("--threads and --tokens are for one part: decode or prompt")
    formats = [name for name in arguments.formats.split(",") if name]
    print(report.header(), flush=True)
    if arguments.part == "all":
        return kernels_all.run(formats, arguments.gib, not arguments.no_peer)
    part = PARTS[arguments.part]
    if arguments.part == "numerics":
        found = part.measure(formats)
    else:
        threads = arguments.threads or ([1, 0] if arguments.part == "decode" else [0])
        tokens = arguments.tokens or TOKENS[arguments.part]
        more = [not arguments.no_peer] if arguments.part == "decode" else []
        found = part.measure(formats, threads, tokens, arguments.gib, *more)
    print(part.show(found))
    path = report.write_json(f"kernels_{arguments.part}_{found['isa']}", found)
    print(f"written to {path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
