"""Plot of bench.kernels: what part of the machine each format gets, per instruction set."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files, no display
from matplotlib import pyplot as plt  # noqa: E402


def plot(found: dict, path: Path) -> Path:
    """Two panels of bars per format: decode over the read bandwidth, prompt over the int8 peak."""
    timed = found["timed"]
    threads = max(row["threads"] for row in found["decode"][timed[0]]["rows"])
    decode = {
        isa: {
            r["format"]: r["share"] for r in found["decode"][isa]["rows"] if r["threads"] == threads
        }
        for isa in timed
    }
    prompt = {isa: {r["format"]: r["share"] for r in found["prompt"][isa]["rows"]} for isa in timed}
    figure, axes = plt.subplots(2, 1, figsize=(11, 6.4), layout="constrained")
    titles = (
        f"decode, {threads} threads: share of the read bandwidth",
        "prompt, 128 tokens: share of the set's peak of int8 products",
    )
    for axis, shares, title in zip(axes, (decode, prompt), titles, strict=True):
        names = list(shares[timed[0]])
        width = 0.8 / len(timed)
        for i, isa in enumerate(timed):
            at = [j + (i - (len(timed) - 1) / 2) * width for j in range(len(names))]
            axis.bar(at, [100 * (shares[isa][name] or 0) for name in names], width, label=isa)
        axis.axhline(100, color="gray", linewidth=0.8)
        axis.set_xticks(range(len(names)), names, rotation=60, fontsize=8)
        axis.set_ylabel("%")
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
