"""What the figures of bench.cpu mean: rates, fractions, ratios; and when they count."""

from statistics import median

from bench.cpu_work import Work, uniform_distinct

BALANCED = 0.90  # of the uniform expectation, below which a model's routing is no fair load

# The machine that results are recorded on, and what it and the peers on it were found to do. A run
# there that falls short was disturbed. Peers: tokens/s at (prompt 512, decode).
RECORDED = {
    "cpu": "AMD EPYC",
    "cores": 2,
    "read_gbps": 55.0,
    "int8_tops": 0.85,
    "llama.cpp": {"qwen3-30b-a3b-16layers": (100, 27.3), "deepseek-v3-2layers": (171, 31.0)},
}
PEER_MARGIN = 0.85

# The least that is asked for: {model: {work: (fraction of the limit, ratio to llama.cpp)}}.
MUSTS = {
    "qwen3-30b-a3b": {
        "prompt 512": (0.58, 2.4),
        "prompt 2048": (0.60, 2.4),
        "prompt 8192": (0.52, 2.4),
        "decode 128": (0.88, 2.4),
        "decode 8192": (0.80, 2.0),
        "decode 32768": (0.80, 2.0),
    },
    "deepseek-v3": {
        "prompt 512": (0.60, 1.2),
        "prompt 2048": (0.63, 1.2),
        "prompt 8192": (0.54, 1.2),
        "decode 128": (0.90, 2.1),
    },
    "SmolLM2-135M-Instruct.Q4_1": {"decode 128": (0.0, 3.0)},
}
AVX2_MUSTS = {"prompt": 1.2, "decode": 1.4}  # ours forced to avx2, against xllamacpp


def best_limits(limits: list[dict]) -> dict:
    """The higher figure of each kind: a disturbed measurement reads low, never high."""
    kinds = ("read_gbps", "int8_tops", "bf16_tflops")
    return limits[0] | {kind: max(one[kind] for one in limits) for kind in kinds}


def rate(runs: list[dict], work: str, length: str) -> float | None:
    """Tokens/s, the best round: prompts by their fastest repeat, decode by the median token."""
    rates = []
    for run in runs:
        times = run[work].get(length)
        if times:
            rates.append(int(length) / min(times) if work == "prompt" else 1.0 / median(times))
    return max(rates, default=None)


def rows_of(name: str, work: Work, found: dict) -> list[dict]:
    """One row per kind of work: limit, rates, fraction, ratios, what is asked, verdict."""
    limits, runs = best_limits(found["limits"]), found["runs"]
    read, int8 = limits["read_gbps"] * 1e9, limits["int8_tops"] * 1e12
    bf16 = limits["bf16_tflops"] * 1e12
    rows = []
    for kind in ("prompt", "decode"):
        lengths = dict.fromkeys(n for run in runs.get("ours", []) for n in run[kind])
        for length in lengths:
            tokens = int(length)
            if kind == "prompt":
                limit = tokens / work.prompt_seconds(tokens, int8, bf16) if int8 and bf16 else None
            else:
                limit = read / work.decode_bytes(tokens)
            rates = {engine: rate(results, kind, length) for engine, results in runs.items()}
            rows.append(judged(name, f"{kind} {length}", limit, rates))
    for count, times in (runs.get("ours", [{}])[0].get("rows") or {}).items():
        least = work.rows_seconds(int(count), 64, read, int8) if int8 else None
        row = {"work": f"{count} rows", "limit": least and int(count) / least}
        row["ours"] = int(count) / median(times)
        row["fraction"] = least and least / median(times)
        row |= {"must": "0.67", "verdict": verdict([(row["fraction"], 1 / 1.5)])}
        rows.append(row)
    return rows


def judged(name: str, work: str, limit: float | None, rates: dict[str, float | None]) -> dict:
    row: dict = {"work": work, "limit": limit, **rates}
    ours, peer = rates.get("ours"), rates.get("llama.cpp")
    row["fraction"] = ours / limit if ours and limit else None
    row["ratio"] = ours / peer if ours and peer else None
    checks = []
    if asked := MUSTS.get(name, {}).get(work):
        row["must"] = " ".join([*([f"{asked[0]:.2f}"] if asked[0] else []), f"{asked[1]:.1f}x"])
        checks = [(row["fraction"], asked[0]), (row["ratio"], asked[1])]
    avx2, slow = rates.get("ours-avx2"), rates.get("xllamacpp")
    if avx2 and slow:
        row["avx2 ratio"] = avx2 / slow
        checks.append((row["avx2 ratio"], AVX2_MUSTS[work.split()[0]]))
    row["verdict"] = verdict(checks)
    return row


def verdict(checks: list[tuple[float | None, float]]) -> str:
    known = [(value, least) for value, least in checks if value is not None and least]
    if not known:
        return ""
    return "ok" if all(value >= least for value, least in known) else "short"


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


def void_reasons(model: str, machine: dict, found: dict, routing: list[dict]) -> list[str]:
    """Why a run does not count; empty where it does. model: name with its layers."""
    reasons = []
    for row in routing:
        if row["share"] < BALANCED:
            reasons.append(
                f"routing: {row['tokens']} tokens meet {row['distinct']:.1f} experts, "
                f"evenly it would be {row['uniform']:.1f}"
            )
    if RECORDED["cpu"] not in machine["cpu"] or machine["cores"] != RECORDED["cores"]:
        return reasons
    limits = best_limits(found["limits"])
    for kind in ("read_gbps", "int8_tops"):
        if limits[kind] < RECORDED[kind]:
            reasons.append(f"limit {kind} {limits[kind]:.2f}, this machine has {RECORDED[kind]}")
    expected = RECORDED["llama.cpp"].get(model)
    if expected and (runs := found["runs"].get("llama.cpp")):
        for kind, length, known in zip(("prompt", "decode"), ("512", "128"), expected, strict=True):
            seen = rate(runs, kind, length)
            if seen and seen < PEER_MARGIN * known:
                reasons.append(f"llama.cpp {kind} {seen:.1f} tokens/s, known to do {known}")
    return reasons


def phase_rows(work: Work, phases: dict, limits: dict) -> list[dict]:
    """ms, bytes, GB/s (decode) or GOPS (prompt of 512) per phase, with the share of the limit."""
    rows = []
    for step, tokens in (("decode", 1), ("prompt", 512)):
        if step not in phases:
            continue
        spans = phases[step]
        for name, span in spans.items():
            parts = [name]
            if name == "experts" and "router" not in spans:  # the whole block
                parts = ["router", "experts", "shared"]
            nbytes = sum(work.phases[p].nbytes for p in parts if p in work.phases)
            ops = sum(work.phases[p].ops for p in parts if p in work.phases)
            ops *= tokens if name != "head" else 1
            row = {"step": step, "phase": name, "ms": span * 1e3}
            row |= {"share": span / sum(spans.values()), "bytes": nbytes, "ops": ops}
            if step == "prompt" and "experts" in parts:  # every expert once, for all its tokens
                routed = work.phases["experts"].nbytes
                row["bytes"] += routed * (work.experts / work.used - 1)
            if step == "decode" and nbytes:
                row |= {"MB": nbytes / 1e6, "GB/s": nbytes / span / 1e9}
                row["of limit"] = nbytes / span / 1e9 / limits["read_gbps"]
            elif ops and limits["int8_tops"]:
                row |= {"GOP": ops / 1e9, "GOP/s": ops / span / 1e9}
                row["of limit"] = ops / span / 1e12 / limits["int8_tops"]
            rows.append(row)
    return rows
