"""What the figures of bench.cpu mean for a model: rates, limits, what is asked of them."""

from statistics import median

from bench.cpu_turns import RECORDED, compared, floor_of, is_recorded, verdict
from bench.cpu_work import Work, uniform_distinct

BALANCED = 0.90  # of the uniform expectation, below which a model's routing is no fair load
PEER_MARGIN = 0.85
ROWS_BEHIND = 64  # positions behind which rows are decoded together

# The least that is asked for: {model: {work: (fraction of the limit, ratio to llama.cpp)}}.
MUSTS = {
    "qwen3-30b-a3b-16layers": {
        "prompt 512": (0.58, 2.4),
        "prompt 2048": (0.60, 2.4),
        "prompt 8192": (0.52, 2.4),
        "decode 128": (0.88, 2.4),
        "decode 8192": (0.80, 2.0),
    },
    "qwen3-30b-a3b-4layers": {"decode 32768": (0.80, 2.0)},
    "deepseek-v3-2layers": {
        "prompt 512": (0.60, 1.2),
        "prompt 2048": (0.63, 1.2),
        "prompt 8192": (0.54, 1.2),
        "decode 128": (0.90, 2.1),
    },
    "SmolLM2-135M-Instruct.Q4_1-30layers": {"decode 128": (0.0, 3.0)},
}
RATES = {"ours": "seconds", "peer": "peer_seconds", "limit": "limit_seconds"}
AVX2_MUSTS = {"prompt": 1.2, "decode": 1.4}  # ours forced to avx2, against xllamacpp


def rows_of(model: str, work: Work, found: dict, machine: dict) -> list[dict]:
    """A row per kind of work and group of engines: figures of bench.cpu_turns.compared, with rates
    in tokens/s (ours, peer, limit), what is asked (must) and the verdict. model: name and layers.
    """
    rows: list[dict] = []
    for group in found["groups"]:
        isa = found["engines"].get(group["ours"], {}).get("isa", "")
        for label, turns in group["turns"].items():
            row = {"work": label, "engine": group["ours"], "peer_engine": group["peer"]}
            row |= compared(
                label, turns, lambda pair, label=label: least_seconds(work, label, pair),
                floor_of(label, machine, isa),
            )  # fmt: skip
            tokens = tokens_of(label)
            for rate, seconds in RATES.items():
                row[rate] = tokens / row[seconds] if row[seconds] else None
            if group["peer"] == "llama.cpp" and not row["void"] and is_recorded(machine):
                row["void"] = slow_peer(model, row)
            rows.append(row | judged(model, row))
    return rows


def tokens_of(label: str) -> int:
    """Of a step: "prompt 512", "decode 128" (behind so many), "4 rows"."""
    kind, _, length = label.partition(" ")
    return int(length) if kind == "prompt" else 1 if kind == "decode" else int(kind)


def least_seconds(work: Work, label: str, pair: dict) -> float | None:
    """What a step takes at least at the limits of its moment; None where one is not known."""
    kind, _, length = label.partition(" ")
    read, int8 = pair["read_gbps"] * 1e9, pair.get("int8_tops", 0.0) * 1e12
    if kind == "decode":
        return work.decode_bytes(int(length)) / read
    if not int8:
        return None
    if kind == "prompt":
        return work.prompt_seconds(int(length), int8, pair["bf16_tflops"] * 1e12)
    return work.rows_seconds(int(kind), ROWS_BEHIND, read, int8)


def slow_peer(model: str, row: dict) -> str:
    """Why a row says too much of us; "" where the peer is as fast as it is known to be."""
    rates = RECORDED["llama.cpp"].get(model, ())
    known = dict(zip(("prompt 512", "decode 128"), rates, strict=False))
    least = PEER_MARGIN * known.get(row["work"], 0.0)
    if row["peer"] is None or row["peer"] >= least:
        return ""
    return f"llama.cpp {row['peer']:.1f} tokens/s, known to do {known[row['work']]}"


def judged(model: str, row: dict) -> dict:
    """{must, verdict}"""
    label, kind = row["work"], row["work"].split()[0]
    if row["engine"] == "ours-avx2" or row["peer_engine"] == "xllamacpp":
        fraction, ratio = 0.0, AVX2_MUSTS[kind]
    elif label.endswith("rows"):
        fraction, ratio = 1 / 1.5, 0.0
    else:
        fraction, ratio = MUSTS.get(model, {}).get(label, (0.0, 0.0))
    must = [f"{fraction:.0%}"] * (fraction > 0) + [f"{ratio:.1f}x"] * (ratio > 0)
    checks = [(row["fraction"], fraction), (row["ratio"], ratio)]
    return {"must": ", ".join(must), "verdict": verdict(checks, row["void"])}


def routing_rows(work: Work, routing: dict[str, list[float]]) -> list[dict]:
    """Distinct experts per layer against the uniform expectation."""
    rows = []
    for tokens, counts in routing.items():
        if not counts:
            continue
        expected = uniform_distinct(work.experts, work.used, int(tokens))
        rows.append(
            {
                "tokens": int(tokens),
                "distinct": sum(counts) / len(counts),
                "least layer": min(counts),
                "uniform": expected,
                "share": sum(counts) / len(counts) / expected,
            }
        )
    return rows


def uneven(routing: list[dict]) -> list[str]:
    """Why a model's routing is no fair load; empty where it is one."""
    return [
        f"routing: {row['tokens']} tokens meet {row['distinct']:.1f} experts, evenly it would be "
        f"{row['uniform']:.1f}"
        for row in routing
        if row["share"] < BALANCED
    ]


def phase_rows(work: Work, phases: dict[str, list[dict]]) -> list[dict]:
    """ms, bytes, GB/s (decode) or GOP/s (prompt of 512) per phase, with the share of the limit.

    phases: {step: repeats of {"spans": {phase: seconds}, "limits"}}; medians over repeats, each
    share that of the limits of its own moment.
    """
    rows = []
    for step, tokens in (("decode", 1), ("prompt", 512)):
        repeats = phases.get(step)
        if not repeats:
            continue
        whole = median(sum(repeat["spans"].values()) for repeat in repeats)
        for name in repeats[0]["spans"]:
            spans = [repeat["spans"][name] for repeat in repeats]
            nbytes, ops = phase_work(work, name, tokens, repeats[0]["spans"])
            row = {"step": step, "phase": name, "ms": median(spans) * 1e3}
            row |= {"share": median(spans) / whole, "bytes": nbytes, "ops": ops}
            kind, amount, unit, scale = ("int8_tops", ops, "GOP", 1e12)
            if step == "decode" and nbytes:
                kind, amount, unit, scale = ("read_gbps", nbytes, "GB", 1e9)
            if amount and all(repeat["limits"][kind] for repeat in repeats):
                row |= {unit: amount / 1e9, f"{unit}/s": amount / median(spans) / 1e9}
                row["of limit"] = median(
                    amount / span / repeat["limits"][kind] / scale
                    for span, repeat in zip(spans, repeats, strict=True)
                )
            rows.append(row)
    return rows


def phase_work(work: Work, name: str, tokens: int, spans: dict) -> tuple[float, float]:
    """(bytes of weights, operations) of a phase in a step of so many tokens."""
    parts = [name]
    if name == "experts" and "router" not in spans:  # the whole block
        parts = ["router", "experts", "shared"]
    nbytes = sum(work.phases[p].nbytes for p in parts if p in work.phases)
    ops = sum(work.phases[p].ops for p in parts if p in work.phases)
    if tokens > 1 and "experts" in parts:  # every expert once, for all its tokens
        nbytes += work.phases["experts"].nbytes * (work.experts / work.used - 1)
    return nbytes, ops * (tokens if name != "head" else 1)
