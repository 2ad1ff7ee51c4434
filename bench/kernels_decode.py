"""Products of few tokens: how much of the memory's bandwidth each weight format gets.

Experts of 7168 x 2048 one after the other through 1 GiB of huge pages, so that each comes from
memory; between two products as many bytes are only read. Both are medians over the run, and what
is printed as a share is the median of the ratios of neighbours. Where .venv-peers has llama.cpp,
its kernels take turns with ours: GB/s, and the median over the turns of how many times as fast
ours are.
"""

import time
from statistics import median

from bench import limits, peers, report
from bench.cpu_engine import Engine, EngineFailed

EXACT = 1
TURNS, WINDOWS, PAUSE = 3, 8, 0.1
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
    """{limits, rows: [{format, threads, tokens, mbytes, gbps, read_gbps, share, peer, ratio}]}.

    peer: llama.cpp's GB/s; it and ratio are None where it is not there.
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
            peer = peer_of(context.threads, m) if with_peer else None
            try:
                for name in formats or known:
                    found["rows"].append(row_of(meter, context, name, known[name], m, peer))
            finally:
                if peer:
                    peer.end()
    return found


def peer_of(threads: int, tokens: int) -> Engine | None:
    """llama.cpp's products; None where it is not there, which is said."""
    job = {"rows": SHAPE[0], "cols": SHAPE[1], "tokens": tokens, "threads": threads, "matrices": 6}
    try:
        if not peers.PYTHON.exists():
            raise EngineFailed("llama.cpp", "not installed: run `make peers`")
        return Engine("llama.cpp", [str(peers.PYTHON), "-m", "bench.peer_ggml"], job)
    except EngineFailed as failure:
        print(f"llama.cpp: {failure}", flush=True)
        return None


def row_of(meter, context, name: str, number: int, tokens: int, peer: Engine | None) -> dict:
    """Ours, its neighbours' reading and llama.cpp's in TURNS turns."""
    products, reads, ratios, theirs = [], [], [], []
    if peer and name not in NOT_IN_GGML:
        peer.ask("take", ggml_type=number)
    for _ in range(TURNS):
        times = meter.run(context, name, *SHAPE, tokens, EXACT, WINDOWS)
        products += times["product"]
        reads += times["read"]
        if peer and name not in NOT_IN_GGML:
            time.sleep(PAUSE)  # for which our threads still wait in loops
            theirs.append(peer.ask("run", passes=2))
            ratios.append(times["bytes"] / median(times["product"]) * 1e-9 / theirs[-1])
            time.sleep(PAUSE)
    shares = [read / product for product, read in zip(products, reads, strict=True)]
    return {
        "format": name,
        "threads": context.threads,
        "tokens": tokens,
        "mbytes": times["bytes"] * 1e-6,
        "gbps": times["bytes"] / median(products) * 1e-9,
        "read_gbps": times["bytes"] / median(reads) * 1e-9,
        "share": median(shares),
        "peer": median(theirs) if theirs else None,
        "ratio": median(ratios) if ratios else None,
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
            f"{row['ratio']:.1f} x" if row["ratio"] else "",
        ]
        for row in found["rows"]
    ]
    lines = [limits.line(limit) for limit in found["limits"]]
    return "\n".join([*lines, report.table(COLUMNS, rows)])
