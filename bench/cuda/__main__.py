"""The CUDA kernels against torch and against what the card was measured to do in the same run.

    python -m bench.cuda                        everything; bench/results/cuda.json
    python -m bench.cuda --only int4,handoff    a part
    python -m bench.cuda --emulated LIBRARY     the same code on small shapes, with the emulated
                                                kernels of the test build: no card, no speed

Times are of graph replays; operands are rotated through several copies, so that none is found in
the L2 cache. Ends with 1 where a result is wrong or a bar is missed.
"""

import argparse
import sys
from pathlib import Path

from bench import report

PARTS = ("int4", "gemv", "experts", "prompts", "mla", "handoff")
COLUMNS = ["work", "us", "p99_us", "GB/s", "against", "ratio", "must", "nmse", "verdict"]


def parse(argv: list[str] | None):
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default=",".join(PARTS), help=",".join(PARTS))
    parser.add_argument("--library", type=Path, help="libkt_cuda.so, if not the installed one")
    parser.add_argument("--emulated", type=Path, metavar="LIBRARY")
    options = parser.parse_args(argv)
    options.only = options.only.split(",")
    if unknown := [part for part in options.only if part not in PARTS]:
        parser.error(f"--only {unknown[0]}: choose from {', '.join(PARTS)}")
    return options


def verdict(row: dict) -> str:
    """wrong: the result is; short: a bar is missed; ok; nothing where no bar is set."""
    if not row["right"]:
        return "wrong"
    if not row.get("must"):
        return ""
    return "ok" if row["ratio"] >= row["must"] else "short"


def measure(card, parts: list[str], say) -> tuple[dict, list[dict], dict]:
    """(limits, rows, {part: why it failed}): one part's failure leaves the others."""
    from bench.cuda import attention, experts, handoff, products, prompts

    limits = card.limits()
    work = {
        "handoff": lambda: handoff.rows(card),
        "int4": lambda: products.int4_rows(card),
        "gemv": lambda: products.gemv_rows(card, limits["copy_gbps"]),
        "experts": lambda: experts.rows(card, limits["copy_gbps"]),
        "prompts": lambda: prompts.rows(card),
        "mla": lambda: attention.rows(card, limits),
    }
    rows, failed = [], {}
    for part in parts:
        try:
            found = work[part]()
        except (RuntimeError, ValueError) as error:  # a kernel's, torch's, a shape's
            failed[part] = str(error).splitlines()[0]
            say(f"FAILED {part}: {failed[part]}")
            continue
        for row in found:
            row["must"] = None if card.emulated else row.get("must")
            row["verdict"] = verdict(row)
            say(" ".join(f"{key}={report.show(value)}" for key, value in row.items()))
        rows += found
    return limits, rows, failed


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    from ktransformers.cuda_library import CudaLibrary, CudaLibraryError

    try:
        library = CudaLibrary(options.emulated or options.library)
        from bench.cuda.card import Card, EmulatedCard

        card = (EmulatedCard if options.emulated else Card)(library)
    except (OSError, CudaLibraryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.header())
    limits, rows, failed = measure(card, options.only, lambda line: print(line, flush=True))
    print(f"\n{card.name}, {card.sms} multiprocessors, {card.memory / 2**30:.1f} GiB; "
          + ", ".join(f"{key} {value:.1f}" for key, value in limits.items()))  # fmt: skip
    used = [c for c in COLUMNS if any(row.get(c) not in (None, "") for row in rows)]
    print(report.table(used, [[row.get(c) for c in used] for row in rows]))
    name = "cuda_emulated" if card.emulated else "cuda"
    payload = {"card": card.name, "limits": limits, "rows": rows, "failed": failed}
    print(f"figures in {report.write_json(name, payload).relative_to(report.ROOT)}")
    return int(bool(failed) or any(row["verdict"] in ("wrong", "short") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
