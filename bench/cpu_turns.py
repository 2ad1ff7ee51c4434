"""What the turns of bench.cpu mean: medians of pairs, and which turns count.

A turn: {"ours": [{"seconds", "read_gbps", ...}, ...], "peer": [seconds, ...], "beside_peer":
{"read_gbps", ...}}. Ours stands beside the limits of its own moment, step by step; "beside_peer"
are those around the peer's step where that takes long. Either side may be missing.
"""

from collections.abc import Callable
from statistics import median

# The machine that results are recorded on, and what it and the peers on it were found to do. What
# falls short there was disturbed. Peers: tokens/s at (prompt 512, decode), or ms of a layer.
RECORDED = {
    "cpu": "AMD EPYC",
    "cores": 2,
    "read_gbps": 55.0,
    "int8_tops": 0.85,
    "llama.cpp": {"qwen3-30b-a3b-16layers": (100, 27.3), "deepseek-v3-2layers": (171, 31.0)},
    "kt-kernel": {1: 16.0, 512: 1752.0},
}
UNITS = {"read_gbps": ("GB/s", 0), "int8_tops": ("TOPS", 2)}


def is_recorded(machine: dict) -> bool:
    return RECORDED["cpu"] in machine["cpu"] and machine["cores"] == RECORDED["cores"]


def floor_of(work: str, machine: dict, isa: str) -> dict[str, float]:
    """The limits that a turn has to have met to count; none on a machine that is not recorded.

    Prompts need the arithmetic, too, unless an instruction set is forced that has another peak.
    """
    if not is_recorded(machine):
        return {}
    kinds = ["read_gbps", "int8_tops"] if is_long(work) and isa != "avx2" else ["read_gbps"]
    return {kind: RECORDED[kind] for kind in kinds}


def is_long(work: str) -> bool:
    """Of seconds, and bound by arithmetic: "prompt 512", or a layer's "512 tokens"."""
    return work.startswith("prompt") or work.endswith("tokens")


def enough(work: str) -> int:
    """Turns that have to count."""
    return 1 if is_long(work) else 3


def counts(turn: dict, floor: dict[str, float]) -> bool:
    pairs, beside = turn.get("ours", []), turn.get("beside_peer", {})
    return all(
        (not pairs or median(pair[kind] for pair in pairs) >= least)
        and beside.get(kind, least) >= least
        for kind, least in floor.items()
    )


def wants_more(work: str, turns: list[dict], floor: dict[str, float]) -> bool:
    """Whether further turns may help: of short ones, too few count so far."""
    is_short = work.startswith("decode") or work.endswith("rows")
    return is_short and sum(counts(turn, floor) for turn in turns) < enough(work)


def compared(
    work: str, turns: list[dict], least: Callable[[dict], float | None], floor: dict[str, float]
) -> dict:
    """The figures of a row. least: the limits of a moment -> the least seconds a step can take.

    seconds, peer_seconds, limit_seconds: medians over steps; fraction: of the limit, the median of
    least / seconds over steps; ratio: the median over turns of the peer's median seconds over ours;
    read_gbps, int8_tops: medians of the limits; turns: "counted/taken"; void: why it does not
    count, or "". Only turns that count make it, or all of them where too few do.
    """
    counted = [turn for turn in turns if counts(turn, floor)]
    is_void = len(counted) < enough(work)
    used = turns if is_void else counted
    pairs = [pair for turn in used for pair in turn.get("ours", [])]
    peers = [seconds for turn in used for seconds in turn.get("peer", [])]
    bounds = [(least(pair), pair["seconds"]) for pair in pairs]
    known = [(bound, seconds) for bound, seconds in bounds if bound]
    ratios = [
        median(turn["peer"]) / median(pair["seconds"] for pair in turn["ours"])
        for turn in used
        if turn.get("ours") and turn.get("peer")
    ]
    found = {
        "seconds": middle(pair["seconds"] for pair in pairs),
        "peer_seconds": middle(peers),
        "limit_seconds": middle(bound for bound, _ in known),
        "fraction": middle(bound / seconds for bound, seconds in known),
        "ratio": middle(ratios),
        "turns": f"{len(counted)}/{len(turns)}",
    }
    for kind in UNITS:
        found[kind] = middle(pair[kind] for pair in pairs if kind in pair)
    return found | {"void": why_void(found, floor) if is_void else ""}


def middle(values) -> float | None:
    values = list(values)
    return median(values) if values else None


def why_void(found: dict, floor: dict[str, float]) -> str:
    short = []
    for kind, least in floor.items():
        unit, digits = UNITS[kind]
        if found[kind] is not None and found[kind] < least:
            short.append(f"{found[kind]:.{digits}f} {unit}")
    return ", ".join(short) or f"only {found['turns']} turns count"


def verdict(checks: list[tuple[float | None, float]], void: str) -> str:
    """checks: (figure, the least that is asked for; 0: nothing)."""
    if void:
        return f"void: {void}"
    asked = [(value, least) for value, least in checks if least]
    if any(value is not None and value < least for value, least in asked):
        return "short"
    return "ok" if asked and all(value is not None for value, _ in asked) else ""
