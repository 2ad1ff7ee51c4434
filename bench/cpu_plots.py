"""Plots of bench.cpu: speed against prompt length and context, and a roofline of what was timed."""

from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")  # files, no display
from matplotlib import pyplot as plt  # noqa: E402


def plot(entries: list[dict], folder: Path) -> list[Path]:
    """Writes cpu-prompt.png, cpu-decode.png and cpu-roofline.png; those that have data."""
    made = [curves(entries, kind, folder / f"cpu-{kind}.png") for kind in ("prompt", "decode")]
    return [path for path in [*made, roofline(entries, folder / "cpu-roofline.png")] if path]


def curves(entries: list[dict], kind: str, path: Path) -> Path | None:
    """Tokens/s over length, one panel a model, one line an engine, the limit above them."""
    panels = [(entry, lines_of(entry["rows"], kind)) for entry in entries]
    panels = [(entry, lines) for entry, lines in panels if lines]
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for axis, (entry, lines) in zip(axes[0], panels, strict=True):
        for name, points in lines.items():
            style = {"color": "gray", "linestyle": ":"} if name == "limit" else {}
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name, **style)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{entry['model']}, {entry['layers']} layers", fontsize=9)
        axis.set_xlabel("prompt tokens" if kind == "prompt" else "context")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("tokens/s")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def lines_of(rows: list[dict], kind: str) -> dict[str, list[tuple[int, float]]]:
    """{engine or "limit": [(length, tokens/s), ...]} of what was measured."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if not row["work"].startswith(f"{kind} "):
            continue
        length = int(row["work"].split()[1])
        sides = [(row["engine"], row["ours"]), (row["peer_engine"], row["peer"])]
        if row["engine"] == "ours":
            sides.append(("limit", row["limit"]))
        for name, value in sides:
            if value:
                lines.setdefault(name, []).append((length, value))
    return lines


def roofline(entries: list[dict], path: Path) -> Path | None:
    """Phases of decode and prompt: operations/s over operations per byte of weights. The limit is
    that of the rows beside which phases stand: medians of the moments."""
    entries = [entry for entry in entries if entry.get("phases")]
    rows = [row for entry in entries for row in entry["rows"]]
    reads = [row["read_gbps"] for row in rows if row["read_gbps"]]
    peaks = [row["int8_tops"] * 1e3 for row in rows if row["int8_tops"]]
    if not entries or not reads or not peaks:
        return None
    read, peak = median(reads), median(peaks)
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    intensity = [2.0**i for i in range(-1, 12)]
    axis.plot(intensity, [min(i * read, peak) for i in intensity], color="gray", label="limit")
    for entry, marker in zip(entries, "osv^D", strict=False):
        for row in entry["phases"]:
            if not row["bytes"] or not row["ops"]:
                continue
            at = row["ops"] / row["bytes"], row["ops"] / row["ms"] / 1e6
            axis.plot(*at, marker, markersize=5)
            label = f"{row['step']} {row['phase']}"
            axis.annotate(label, at, fontsize=6, xytext=(3, 2), textcoords="offset points")
        axis.plot([], [], marker, color="black", label=entry["model"])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=10)
    axis.set_xlabel("operations per byte of weights")
    axis.set_ylabel("10⁹ operations/s")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
