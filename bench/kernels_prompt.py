"""Products of many tokens: how much of the peak of int8 products each weight format reaches.

Experts of 7168 x 2048 one after the other through memory, as a prompt meets them, with the
rounding that prompts have by default. Each product stands between two measurements of the peak,
with the same threads and instruction set; what is printed is the one of median share.
"""

from bench import report
from bench.kernels_decode import SHAPE

DIGIT = 2
COLUMNS = ["format", "threads", "tokens", "ms", "GOPS", "peak", "share", "must", "verdict"]
MUSTS = {32: 0.60, 16: 0.52}  # by values per scale, at 128 tokens on AVX-512 VNNI


def measure(formats: list[str], threads: list[int], tokens: list[int], gib: float = 1.0) -> dict:
    """{isa, rows: [{format, threads, tokens, seconds, gops, peak_gops, share, must}]}.

    Without names, every format that is multiplied in integers.
    """
    from ktransformers import _core

    groups = {row["name"]: row["group"] for row in _core.formats() if row["group"]}
    found: dict = {"isa": None, "rows": []}
    for count in threads:
        context = _core.Context(count)
        found["isa"] = context.isa
        meter = _core.KernelMeter(context, int(gib * 2**30))
        limit = _core.LimitMeter(context, 1 << 21)
        for name in formats or groups:
            for m in tokens:
                found["rows"].append(row_of(meter, context, limit, name, m, groups[name]))
    return found


def row_of(meter, context, limit, name: str, tokens: int, group: int, windows: int = 9) -> dict:
    made, peak = [], limit.int8_tops(context) * 1e3
    for _ in range(windows):
        (seconds,) = meter.run(context, name, *SHAPE, tokens, DIGIT, 1)["product"]
        after = limit.int8_tops(context) * 1e3
        made.append((seconds, (peak + after) / 2))
        peak = after
    made.sort(key=lambda one: one[0] * one[1])
    seconds, peak = made[windows // 2]
    gops = 2 * SHAPE[0] * SHAPE[1] * tokens / seconds * 1e-9
    bounded = tokens == 128 and context.isa.startswith("avx512")
    return {
        "format": name,
        "threads": context.threads,
        "tokens": tokens,
        "seconds": seconds,
        "gops": gops,
        "peak_gops": peak,
        "share": gops / peak if peak else None,
        "must": MUSTS[group] if bounded else None,
    }


def show(found: dict) -> str:
    rows = []
    for row in found["rows"]:
        share, must = row["share"], row["must"]
        cells = [row["format"], row["threads"], row["tokens"], f"{row['seconds'] * 1e3:.1f}"]
        cells += [f"{row['gops']:.0f}", f"{row['peak_gops']:.0f}"]
        cells += ["" if share is None else f"{share:.0%}", "" if must is None else f"{must:.0%}"]
        rows.append([*cells, "" if must is None else "ok" if share >= must else "short"])
    return report.table(COLUMNS, rows)
