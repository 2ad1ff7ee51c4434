"""A fit as people and programs read it."""

from typing import Any

from ktransformers.optimize.box import GB
from ktransformers.optimize.fit import Fit, Placed
from ktransformers.optimize.report import ranges

NAMES = {
    "attention": "attention, norms, routers", "shared": "shared experts", "dense": "dense layers",
    "head": "head", "experts": "routed experts", "embedding": "embedding",
}  # fmt: skip


def rows(fit: Fit) -> list[dict[str, Any]]:
    """Groups of one kind, device and reason together: what, layers, device, bytes, read, why."""
    found: dict[tuple, list[Placed]] = {}
    for one in fit.placed:
        why = one.reason.partition(",")[0] if "GB short" in one.reason else one.reason
        found.setdefault((one.group.kind, one.device, why), []).append(one)
    order = list(NAMES)
    made = []
    for (kind, device, why), group in sorted(
        found.items(), key=lambda item: (order.index(item[0][0]), item[0][1] == "cpu")
    ):
        layers = [one.group.layer for one in group if one.group.layer >= 0]
        made.append(
            {
                "what": NAMES[kind],
                "layers": ranges(layers).strip("{}") if layers else "",
                "device": device,
                "bytes": sum(one.group.nbytes for one in group),
                "read": sum(one.group.active for one in group),
                "why": why,
            }
        )
    return made


def to_json(fit: Fit) -> dict[str, Any]:
    """The whole fit as JSON types."""
    return {
        "model": fit.facts.name,
        "machine": fit.box.line(),
        "context": fit.context,
        "groups": rows(fit),
        "used": fit.used,
        "reserve": fit.reserve,
        "seconds": fit.seconds,
        "tokens_per_second": fit.speed,
        "prompt_tokens_per_second": fit.prompt,
        "prompt_bound": fit.prompt_bound,
        "verdict": fit.verdict,
    }


def lines(fit: Fit) -> list[str]:
    """The table: what goes where and why, what each device holds, what to expect."""
    head = ("what", "layers", "device", "GB", "GB/token", "why")
    cells = [
        (r["what"], r["layers"], r["device"], gigabytes(r["bytes"]), gigabytes(r["read"]), r["why"])
        for r in rows(fit)
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    out = [f"{fit.facts.name} on {fit.box.line()}; context {fit.context}"]
    for row in (head, *cells):
        pads = [
            cell.rjust(width) if i in (3, 4) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        out.append("  ".join(pads).rstrip())
    for device, used in fit.used.items():
        out.append(
            f"{device}: {used / GB:.1f} of {fit.room(device) / GB:.1f} GB, "
            f"{fit.reserve[device] / GB:.1f} of them for the cache, prompts and a margin"
        )
    if fit.verdict:
        out.append(fit.verdict)
    return out + expectation(fit)


def gigabytes(count: float) -> str:
    """Two digits behind the point, more where that would be nothing."""
    return f"{count / GB:.2f}" if count >= 0.05 * GB or count == 0 else f"{count / GB:.5f}"


def expectation(fit: Fit) -> list[str]:
    """What to expect, and what takes the time."""
    shares = sorted(fit.seconds.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in shares if value > 5e-5)
    return [
        f"predicted: {fit.speed:.1f} tokens/s ({parts}); prompts {fit.prompt:.0f} tokens/s "
        f"(bound by {fit.prompt_bound})"
    ]


def on_gpus(fit: Fit) -> dict[str, int]:
    """Bytes of weights by kind that are on GPUs."""
    found: dict[str, int] = {}
    for one in fit.placed:
        if one.device != "cpu":
            found[one.group.kind] = found.get(one.group.kind, 0) + one.group.nbytes
    return found


def change_lines(fit: Fit, others: dict[str, Fit | None]) -> list[str]:
    """What one more or less GB would change."""
    where = "VRAM" if fit.box.gpus else "RAM"
    out = []
    for sign, other in others.items():
        if other is None:
            out.append(f"1 GB {'more' if sign == '+' else 'less'} {where}: the rules no longer fit")
            continue
        change = sum(on_gpus(other).values()) - sum(on_gpus(fit).values())
        what = f"{abs(change) / GB:.2f} GB of weights move to {'GPUs' if change > 0 else 'RAM'}"
        what = what if change else "nothing moves"
        if other.verdict and not fit.verdict:
            what = other.verdict
        out.append(
            f"1 GB {'more' if sign == '+' else 'less'} {where}: {what}, {other.speed:.1f} tokens/s "
            f"({other.speed - fit.speed:+.1f}), prompts {other.prompt:.0f}"
        )
    return out
