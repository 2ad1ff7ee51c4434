"""The way GPU -> CPU -> GPU with nothing to do, inside one graph: microseconds per layer."""

import ctypes
from statistics import median

from bench.cuda.card import Card

LAYERS, STEPS = 60, 200
WAYS = {0: "memory operations", 1: "host functions"}
MUST_MEDIAN, MUST_P99 = 10.0, 30.0  # of memory operations


def measure(card: Card, way: int, layers: int, steps: int) -> tuple[int, list[float]]:
    """(the way taken, microseconds of every hand-off). way -1: what the probe finds."""
    taken = ctypes.c_int(way)
    times = (ctypes.c_double * (layers * steps))()
    card.library.call("handoff_bench", layers, steps, ctypes.byref(taken), times)
    return taken.value, list(times)


def row(way: int, times: list[float], bars: bool) -> dict:
    times = sorted(times)
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    middle = median(times)
    found = {
        "work": f"hand-off by {WAYS[way]}", "us": middle, "p99_us": p99, "right": min(times) > 0,
        "against": f"{MUST_MEDIAN:.0f} us median, {MUST_P99:.0f} us p99",
    }  # fmt: skip
    if bars:
        found["ratio"] = min(MUST_MEDIAN / middle, MUST_P99 / p99)
        found["must"] = 1.0
    return found


def rows(card: Card) -> list[dict]:
    layers, steps = (3, 4) if card.emulated else (LAYERS, STEPS)
    taken, times = measure(card, -1, layers, steps)
    found = [row(taken, times, bars=not card.emulated)]
    if taken == 0 and not card.emulated:
        found.append(row(*measure(card, 1, layers, steps), bars=False))
    return found
