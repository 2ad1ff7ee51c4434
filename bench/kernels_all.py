"""Every part of bench.kernels on every instruction set, each in a process of its own.

A set that stands for another one's instructions on machines that lack them (`stands_for`) is run
for its numerics only: its speed says nothing.
"""

import os
import subprocess
import sys
from json import dumps, loads
from pathlib import Path

from bench import cpu_tables, report


class Failed(Exception):
    """A part ended without its figures; the message is the last line it wrote."""


def sets() -> tuple[list[str], list[str]]:
    """Names of the sets to time, and of those that are only to be checked; scalar is left out."""
    from ktransformers import _core

    usable = [row for row in _core.cpu_info()["isas"] if row["usable"] and row["name"] != "scalar"]
    twins = [row["name"] for row in usable if row.get("stands_for")]
    return [row["name"] for row in usable if row["name"] not in twins], twins


def run_part(part: str, isa: str, *arguments: str) -> dict:
    """The part's JSON. Raises: Failed."""
    command = [sys.executable, "-m", "bench.kernels", part, *arguments]
    done = subprocess.run(
        command, cwd=report.ROOT, env=os.environ | {"KT_CPU_ISA": isa},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise Failed(f"{part} on {isa}: {words[0]}")
    return loads((report.RESULTS / f"kernels_{part}_{isa}.json").read_text())


def run(formats: list[str], gib: float, with_peer: bool) -> int:
    """Prints the tables and writes kernels.json and kernels.png. Returns the exit status."""
    timed, twins = sets()
    chosen = ["--formats", ",".join(formats)] if formats else []
    memory = ["--gib", str(gib)]
    found: dict = {"timed": timed, "twins": twins, "decode": {}, "prompt": {}, "numerics": {}}
    try:
        for i, isa in enumerate(timed):
            peer = [] if with_peer and i == 0 else ["--no-peer"]  # llama.cpp takes what is best
            found["decode"][isa] = run_part("decode", isa, *chosen, *memory, *peer)
            found["prompt"][isa] = run_part("prompt", isa, *chosen, *memory)
            print(f"{isa}: timed", flush=True)
        for isa in [*timed, *twins]:
            found["numerics"][isa] = run_part("numerics", isa, *chosen)
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    print(show(found))
    print(f"figures in {report.write_json('kernels', found).relative_to(report.ROOT)}")
    if image := plotted(found, report.RESULTS / "kernels.png"):
        print(f"plot in {image.relative_to(report.ROOT)}")
    return 0


def decode_rows(found: dict, isa: str) -> dict[tuple[str, int], dict]:
    return {(row["format"], row["threads"]): row for row in found["decode"][isa]["rows"]}


def thread_counts(found: dict) -> list[int]:
    first = next(iter(found["decode"].values()), {"rows": []})
    return sorted({row["threads"] for row in first["rows"]})


def tables(found: dict) -> list[tuple[str, list[str], list[list]]]:
    """(title, columns, rows): shares of read bandwidth, shares of int8 peak, errors."""
    timed, everywhere = found["timed"], [*found["timed"], *found["twins"]]
    made = []
    for threads in thread_counts(found):
        of = {isa: decode_rows(found, isa) for isa in timed}
        rows = []
        for name in [n for n, count in of[timed[0]] if count == threads]:
            shares = [percent(of[isa][name, threads]["share"]) for isa in timed]
            best = of[timed[0]][name, threads]
            ratio = f"{best['ratio']:.1f} x" if best["ratio"] else ""
            rows.append([name, *shares, f"{best['read_gbps']:.0f}", ratio])
        many = "s" * (threads != 1)
        title = f"decode, {threads} thread{many}: share of the read bandwidth"
        made.append((title, ["format", *timed, "read GB/s", f"{timed[0]} / llama.cpp"], rows))
    by_isa = {isa: {r["format"]: r for r in found["prompt"][isa]["rows"]} for isa in timed}
    rows = [
        [name, *(percent(by_isa[isa][name]["share"]) for isa in timed)] for name in by_isa[timed[0]]
    ]
    title = "prompt, 128 tokens: share of the set's own peak of int8 products"
    made.append((title, ["format", *timed], rows))
    errors = {isa: {r["format"]: r for r in found["numerics"][isa]["rows"]} for isa in everywhere}
    columns = [f"{isa} {kind}" for kind in ("halves", "digits") for isa in everywhere]
    rows = [
        [name, *(errors[isa][name][kind] for kind in ("halves", "digits") for isa in everywhere)]
        for name, row in errors[everywhere[0]].items()
        if row["halves"] is not None
    ]
    made.append(("error against float64, relative", ["format", *columns], rows))
    return made


def show(found: dict) -> str:
    return "\n".join(
        f"\n{title}\n{report.table(columns, rows)}" for title, columns, rows in tables(found)
    )


def page_part(found: dict, image: Path | None) -> str:
    """What stands in docs/cpu.md."""
    made = f"{found['machine']['cpu']}, {found['machine']['cores']} cores; commit "
    parts = [f"`python -m bench.kernels` on {made}{found['commit']}, {found['date'][:10]}."]
    if image:
        parts.append(f"![{image.stem}](images/{image.name})")
    for title, columns, rows in tables(found):
        cells = [[report.show(cell) for cell in row] for row in rows]
        parts += [f"{title[0].upper()}{title[1:]}:", cpu_tables.markdown(columns, cells)]
    return "\n\n".join(parts)


def write() -> int:
    """docs/cpu.md's tables, docs/kernels.json and the plot, from what was measured last. Returns
    the exit status."""
    try:
        found = loads((report.RESULTS / "kernels.json").read_text())
    except FileNotFoundError:
        print("error: nothing measured yet: run `python -m bench.kernels`", file=sys.stderr)
        return 2
    image = plotted(found, cpu_tables.IMAGES / "kernels.png")
    try:
        page = cpu_tables.with_part(cpu_tables.PAGE.read_text(), page_part(found, image), "kernels")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cpu_tables.PAGE.write_text(page)
    (report.ROOT / "docs" / "kernels.json").write_text(dumps(found, indent=1) + "\n")
    print(f"written to {cpu_tables.PAGE.relative_to(report.ROOT)}")
    return 0


def plotted(found: dict, path: Path) -> Path | None:
    try:
        from bench.kernels_plot import plot
    except ImportError:
        print("no plot: pip install 'ktransformers[bench]' brings matplotlib")
        return None
    return plot(found, path)


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
