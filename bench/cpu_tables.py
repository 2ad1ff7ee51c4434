"""The tables of bench.cpu, and its page: docs/cpu.md, docs/cpu.json, docs/images/cpu-*.png.

    python -m bench.cpu_tables            prints what bench/results/cpu.json and docs/cpu.json hold
    python -m bench.cpu_tables --write    puts it into the page

Of a model the newer entry counts; the page shows full runs, and quick ones of models without.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from bench.report import RESULTS, ROOT, table

PAGE, KEPT, IMAGES = (ROOT / "docs" / name for name in ("cpu.md", "cpu.json", "images"))
LAYER = "moe-layer"
ORDER = ("qwen3", "deepseek-v3", "deepseek-v2", "mixtral", "SmolLM2", LAYER)
WORK = ["work", "ours", "limit", "of limit", "peer", "its", "ratio", "must", "verdict",
        "read GB/s", "turns"]  # fmt: skip
PHASE = ["step", "phase", "ms", "share", "MB", "GB/s", "GOP/s", "of limit"]


def digits(value: float | None, unit: str = "") -> str:
    """A rate, a time or a ratio with as many digits as it is worth."""
    if value is None:
        return "-"
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def work_cells(rows: list[dict]) -> list[list[str]]:
    """Cells of WORK. Rates are tokens/s; of a layer, ms."""
    cells = []
    for row in rows:
        forced = ", AVX2 forced" if row["engine"] == "ours-avx2" else ""
        cells.append(
            [row["work"] + forced, digits(row["ours"]), digits(row["limit"]),
             percent(row["fraction"]), row["peer_engine"] or "-", digits(row["peer"]),
             digits(row["ratio"], "x"), row["must"] or "-", row["verdict"] or "-",
             digits(row["read_gbps"]), row["turns"]]
        )  # fmt: skip
    return cells


def phase_cells(rows: list[dict]) -> list[list[str]]:
    """Cells of PHASE."""
    return [
        [row["step"], row["phase"], digits(row["ms"]), percent(row["share"]),
         digits(row["bytes"] / 1e6), digits(row.get("GB/s")), digits(row.get("GOP/s")),
         percent(row.get("of limit"))]
        for row in rows
    ]  # fmt: skip


def title(entry: dict) -> str:
    if entry["model"] == LAYER:
        return "MoE layer of DeepSeek-V3's width, 64 experts, 8 a token; in ms"
    return (f"{entry['model']}, {entry['layers']} layers, {entry['file_bytes'] / 1e9:.2f} GB; "
            "in tokens/s")  # fmt: skip


def kernels(entry: dict) -> str:
    """Which instruction sets and arithmetic made the figures, and who the peers are."""
    parts = []
    for name, facts in entry["engines"].items():
        words = facts["engine"]
        if "isa" in facts:
            words = f"kernels {facts['isa']}, activations {facts['activations']}"
        parts.append(f"{name}: {words}, {facts['threads']} threads")
    parts += [f"{name}: {why}" for name, why in entry["missing"].items()]
    return "; ".join(parts)


def text(entry: dict) -> str:
    """One entry for a terminal."""
    parts = [table(WORK, work_cells(entry["rows"]))]
    if entry.get("phases"):
        parts.append(table(PHASE, phase_cells(entry["phases"])))
    if entry.get("routing"):
        names = ["tokens", "distinct", "least layer", "uniform", "share"]
        cells = [[row["tokens"], *[f"{row[n]:.1f}" for n in names[1:-1]], percent(row["share"])]
                 for row in entry["routing"]]  # fmt: skip
        parts.append(table(names, cells))
    return "\n\n".join([*parts, *[f"VOID: {reason}" for reason in entry["void"]]])


def markdown(columns: list[str], cells: list[list[str]]) -> str:
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page_part(entries: dict[str, dict], images: list[Path]) -> str:
    """What stands between the page's marks."""
    parts = [f"![{image.stem}](images/{image.name})" for image in images]
    for entry in in_order(entries):
        made = f"`{entry['command']}` on {entry['machine']['cpu']}, {entry['machine']['cores']} "
        made += f"cores; commit {entry['commit']}, {entry['date'][:10]}"
        parts += [f"### {title(entry)}", f"{made}. {kernels(entry)}."]
        parts.append(markdown(WORK, work_cells(entry["rows"])))
        parts += [f"Void: {reason}." for reason in entry["void"]]
        if entry.get("phases"):
            parts.append(markdown(PHASE, phase_cells(entry["phases"])))
    return "\n\n".join(parts)


def in_order(entries: dict[str, dict]) -> list[dict]:
    def place(entry: dict) -> tuple[int, int]:
        known = (i for i, name in enumerate(ORDER) if entry["model"].startswith(name))
        return next(known, len(ORDER)), -entry.get("layers", 0)

    return sorted(entries.values(), key=place)


def entries_of(path: Path) -> dict[str, dict]:
    """{key: entry} of a file of figures; none where there is no file, or one of another form."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found.get("entries", {}) if isinstance(found, dict) else {}


def key_of(entry: dict) -> str:
    """Entries of one key replace each other; those that are no full runs do not replace one."""
    return f"{entry['model']}-{entry['layers']}layers, {entry['mode']}"


def published(entries: dict[str, dict]) -> dict[str, dict]:
    """Of each model its full run, or its quick one where there is no other; no parts."""
    found: dict[str, dict] = {}
    for mode in ("quick", "full"):
        for entry in entries.values():
            if entry["mode"] == mode:
                found[key_of(entry | {"mode": ""})] = entry
    return {key_of(entry): entry for entry in found.values()}


def newer(kept: dict[str, dict], measured: dict[str, dict]) -> dict[str, dict]:
    """Of each model the entry with the later date; turns, which are many, are left out."""
    found = dict(kept)
    for key, entry in measured.items():
        if key not in found or found[key]["date"] < entry["date"]:
            found[key] = {name: value for name, value in entry.items() if name != "turns"}
    return found


def with_part(page: str, part: str, name: str = "measured") -> str:
    """The page with its tables renewed. Raises: ValueError for one without a place for them."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.S)
    if not mark.search(page):
        raise ValueError(f"{PAGE.name} has no place for the tables: <!-- {name} --> ... ")
    return mark.sub(lambda found: found[1] + part + found[2], page)


def write(entries: dict[str, dict]) -> None:
    """The page, its figures and its plots."""
    images = plots(in_order(entries), IMAGES)
    PAGE.write_text(with_part(PAGE.read_text(), page_part(entries, images)))
    KEPT.write_text(json.dumps({"entries": entries}, indent=1) + "\n")


def plots(entries: list[dict], folder: Path) -> list[Path]:
    """Written; none where matplotlib is missing, which is said."""
    try:
        from bench.cpu_plots import plot
    except ImportError:
        print("no plots: pip install 'ktransformers[bench]' brings matplotlib")
        return []
    return plot(entries, folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu_tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    entries = newer(entries_of(KEPT), entries_of(RESULTS / "cpu.json"))
    for entry in in_order(entries):
        print(f"\n{title(entry)}\n{kernels(entry)}\n\n{text(entry)}")
    if options.write:
        write(published(entries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
