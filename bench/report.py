"""What every benchmark prints and keeps: the machine, the commit, a table, a JSON file."""

import json
import platform
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def machine() -> dict:
    """Processor, usable cores and memory, as the system names them."""
    import os

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in info.splitlines())
    }
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    flags = fields.get("flags", "").split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "isa": [flag for flag in wanted if flag in flags],
    }


def commit() -> str:
    """Short hash of the sources, with "+changes" where files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def header() -> str:
    here = machine()
    isa = " ".join(here["isa"]) or "baseline"
    return f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB, {isa}; {commit()}"


def table(columns: list[str], rows: list[list]) -> str:
    """Plain text, first column left-aligned, the others right-aligned."""
    cells = [columns, *[[show(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = []
    for row in cells:
        first, *rest = (
            value.ljust(width) if i == 0 else value.rjust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def show(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2e}" if value != 0 and abs(value) < 1e-2 else f"{value:.4f}"
    return str(value)


def write_json(name: str, payload: dict) -> Path:
    """bench/results/<name>.json with machine, commit and date beside the payload."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    whole = {"machine": machine(), "commit": commit(), "date": date, **payload}
    path.write_text(json.dumps(whole, indent=1, default=str) + "\n")
    return path
