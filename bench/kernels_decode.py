"""Products of few tokens: how much of the memory's bandwidth each weight format gets.

Experts of 7168 x 2048 one after the other through 1 GiB of huge pages, so that each comes from
memory; between two products as many bytes are only read. Both are medians over the run, and what is
printed as a share is the ratio of the two.
"""

from statistics import median

from bench import limits, report

EXACT = 1
SHAPE = (2048, 7168)  # rows, columns: gate and up of an expert of DeepSeek-V3's width
COLUMNS = ["format", "threads", "tokens", "MB", "GB/s", "read GB/s", "share"]


def measure(formats: list[str], threads: list[int], tokens: list[int], gib: float = 1.0) -> dict:
    """{limits: [...], rows: [{format, threads, tokens, mbytes, gbps, read_gbps, share}]}."""
    from ktransformers import _core

    known = [row["name"] for row in _core.formats()]
    found = {"isa": None, "limits": [], "rows": []}
    for count in threads:
        context = _core.Context(count)
        found["isa"] = context.isa
        found["limits"].append(limits.measure(context=context, gib=gib))
        meter = _core.KernelMeter(context, int(gib * 2**30))
        for name in formats or known:
            for m in tokens:
                found["rows"].append(row_of(meter, context, name, m))
    return found


def row_of(meter, context, name: str, tokens: int, windows: int = 24) -> dict:
    times = meter.run(context, name, *SHAPE, tokens, EXACT, windows)
    gbps, read = (times["bytes"] / median(times[kind]) * 1e-9 for kind in ("product", "read"))
    return {
        "format": name,
        "threads": context.threads,
        "tokens": tokens,
        "mbytes": times["bytes"] * 1e-6,
        "gbps": gbps,
        "read_gbps": read,
        "share": gbps / read,
    }


def show(found: dict) -> str:
    rows = [
        [
            row["format"],
            row["threads"],
            row["tokens"],
            f"{row['mbytes']:.1f}",
            f"{row['gbps']:.1f}",
            f"{row['read_gbps']:.1f}",
            f"{row['share']:.0%}",
        ]
        for row in found["rows"]
    ]
    lines = [limits.line(limit) for limit in found["limits"]]
    return "\n".join([*lines, report.table(COLUMNS, rows)])
