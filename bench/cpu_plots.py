"""Plots of bench.cpu: speed against prompt length and context, and a roofline of what was timed."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files, no display
from matplotlib import pyplot as plt  # noqa: E402


def plot(results: list[dict], folder: Path) -> list[Path]:
    """Writes cpu-prompt.png, cpu-decode.png and cpu-roofline.png; those that have data."""
    made = [curves(results, kind, folder / f"cpu-{kind}.png") for kind in ("prompt", "decode")]
    return [path for path in [*made, roofline(results, folder / "cpu-roofline.png")] if path]


def curves(results: list[dict], kind: str, path: Path) -> Path | None:
    """Tokens/s over length, one panel a model, one line an engine, the limit above them."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.6), squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[0], results, strict=True):
        rows = [row for row in result["rows"] if row["work"].startswith(kind)]
        lengths = [int(row["work"].split()[1]) for row in rows]
        for engine in ("limit", *result["measured"]["runs"]):
            points = [(n, row.get(engine)) for n, row in zip(lengths, rows, strict=True)]
            points = [(n, value) for n, value in points if value]
            style = {"color": "gray", "linestyle": ":"} if engine == "limit" else {"marker": "o"}
            if points:
                axis.plot(*zip(*points, strict=True), label=engine, **style)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{result['model']}, {result['layers']} layers", fontsize=9)
        axis.set_xlabel("prompt tokens" if kind == "prompt" else "context")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("tokens/s")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def roofline(results: list[dict], path: Path) -> Path | None:
    """Phases of decode and prompt: operations/s over operations per byte of weights."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    limits = results[0]["limits"]
    read, peak = limits["read_gbps"], limits["int8_tops"] * 1e3
    if not peak:
        plt.close(figure)
        return None
    intensity = [2.0**i for i in range(-1, 12)]
    axis.plot(intensity, [min(i * read, peak) for i in intensity], color="gray", label="limit")
    for result, marker in zip(results, "osv^D", strict=False):
        for row in result["phases"]:
            if not row["bytes"] or not row["ops"]:
                continue
            at = row["ops"] / row["bytes"], row["ops"] / row["ms"] / 1e6
            axis.plot(*at, marker, markersize=5)
            label = f"{row['step']} {row['phase']}"
            axis.annotate(label, at, fontsize=6, xytext=(3, 2), textcoords="offset points")
        axis.plot([], [], marker, color="black", label=result["model"])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=10)
    axis.set_xlabel("operations per byte of weights")
    axis.set_ylabel("10⁹ operations/s")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
