"""Products of few tokens: how much of the memory's bandwidth each weight format gets.

Experts of 7168 x 2048 one after the other through 1 GiB of huge pages, so that each comes from
memory; between two products as many bytes are only read. Both are medians over the run, and what
is printed as a share is the ratio of the two. Beside it the same products by llama.cpp's kernels,
where .venv-peers has them, in the same run: GB/s, and how many times as fast ours are.
"""

from statistics import median

from bench import limits, peers, report

EXACT = 1
SHAPE = (2048, 7168)  # rows, columns: gate and up of an expert of DeepSeek-V3's width
COLUMNS = ["format", "threads", "tokens", "MB", "GB/s", "read GB/s", "share", "llama.cpp", "ratio"]
# Types that ggml has no product of its own for, or that its newest release only knows.
NOT_IN_GGML = {"nvfp4"}


def measure(
    formats: list[str],
    threads: list[int],
    tokens: list[int],
    gib: float = 1.0,
    with_peer: bool = True,
) -> dict:
    """{limits: [...], rows: [{format, threads, tokens, mbytes, gbps, read_gbps, share, peer}]}.

    peer: llama.cpp's GB/s, None where it is not there.
    """
    from ktransformers import _core

    known = {row["name"]: row["gguf_id"] for row in _core.formats()}
    found = {"isa": None, "limits": [], "rows": []}
    for count in threads:
        context = _core.Context(count)
        found["isa"] = context.isa
        found["limits"].append(limits.measure(context=context, gib=gib))
        meter = _core.KernelMeter(context, int(gib * 2**30))
        for m in tokens:
            rows = [row_of(meter, context, name, m) for name in formats or known]
            ids = {row["format"]: known[row["format"]] for row in rows}
            theirs = peer_speeds(ids, context.threads, m) if with_peer else {}
            found["rows"] += [row | {"peer": theirs.get(row["format"])} for row in rows]
    return found


def peer_speeds(ids: dict[str, int], threads: int, tokens: int) -> dict[str, float]:
    task = {
        "formats": {name: number for name, number in ids.items() if name not in NOT_IN_GGML},
        "rows": SHAPE[0],
        "cols": SHAPE[1],
        "tokens": tokens,
        "threads": threads,
        "matrices": 6,
        "passes": 4,
    }
    return peers.ggml_products(task) or {}


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
            f"{row['peer']:.1f}" if row["peer"] else "",
            f"{row['gbps'] / row['peer']:.1f} x" if row["peer"] else "",
        ]
        for row in found["rows"]
    ]
    lines = [limits.line(limit) for limit in found["limits"]]
    return "\n".join([*lines, report.table(COLUMNS, rows)])
