"""A plan as people and programs read it: one line, a table, JSON."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ktransformers.optimize.plan import Plan, PlanRow

_LAYER = re.compile(r"\.layers\.(\d+)(?=\.|$)")
COLUMNS = ("module", "rule", "operator", "device", "options", "bytes")


def size_text(count: int) -> str:
    """1536 -> '1.5 KiB'."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def summary(plan: Plan) -> str:
    """One line: how many modules by what rules, and what each device holds."""
    torch = sum(row.backend == "torch" and bool(row.parameters) for row in plan.rows)
    plain = f", {torch} of them plain torch" if torch else ""
    held = ", ".join(f"{size_text(n)} on {device}" for device, n in plan.device_bytes().items())
    name = Path(plan.rules_path).name
    return f"{len(plan.rows)} modules planned by {name}{plain}: {held or 'no weights'}"


def to_json(plan: Plan) -> dict[str, Any]:
    """Everything in the plan as JSON types; `rows` in the order of the tree."""
    return {
        "rules": plan.rules_path,
        "dialect": plan.dialect,
        "notes": list(plan.notes),
        "device_bytes": plan.device_bytes(),
        "rows": [
            {
                "module": row.module,
                "kind": row.kind,
                "operator": row.operator,
                "backend": row.backend,
                "device": row.device,
                "options": dataclasses.asdict(row.options),
                "rule": str(row.rule) if row.rule else None,
                "why": row.why,
                "bytes": row.nbytes,
                "parameters": list(row.parameters),
                "tensors": list(row.tensors),
                "subtree": row.subtree,
                "types": dict(row.types),
                "how": dict(row.how),
            }
            for row in plan.rows
        ],
    }


@dataclasses.dataclass
class Line:
    """Rows that differ in nothing but their layer number."""

    row: PlanRow
    layers: list[int]
    nbytes: int

    def cells(self) -> tuple[str, ...]:
        row = self.row
        module = _LAYER.sub(f".layers.{ranges(self.layers)}", row.module, count=1)
        changed = {
            field.name: getattr(row.options, field.name)
            for field in dataclasses.fields(row.options)
            if getattr(row.options, field.name) != field.default
        }
        changed |= row.how
        return (
            module + (".*" if row.subtree else ""),
            row.rule.short if row.rule else "-",
            row.operator,
            row.device if row.backend in row.device else f"{row.device} ({row.backend})",
            " ".join(f"{key}={value}" for key, value in changed.items()),
            size_text(self.nbytes) if self.row.parameters else "",
        )


def lines(plan: Plan, every_layer: bool = False) -> list[Line]:
    """The table's lines: equal rows of several layers in one, unless `every_layer`."""
    found: dict[tuple, Line] = {}
    for row in plan.rows:
        layer = _LAYER.search(row.module)
        pattern = _LAYER.sub(".layers.*", row.module, count=1)
        key = (
            pattern,
            row.operator,
            row.backend,
            row.device,
            row.rule,
            repr((row.options, row.how)),
        )
        if layer and key in found and not every_layer:
            found[key].layers.append(int(layer[1]))
            found[key].nbytes += row.nbytes
        else:
            number = [int(layer[1])] if layer else []
            found[(*key, row.module) if every_layer else key] = Line(row, number, row.nbytes)
    return list(found.values())


def ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> '{0-2,5}'; one number stands bare."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(runs) == 1 and runs[0][0] == runs[0][1] else f"{{{text}}}"


def table(plan: Plan, every_layer: bool = False) -> Any:
    """A rich.table.Table of the plan with a total per device below."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    totals = "\n".join(size_text(n) for n in plan.device_bytes().values())
    devices = "\n".join(plan.device_bytes())
    footers = {"module": "total", "device": devices, "bytes": totals}
    shown = lines(plan, every_layer)
    any_options = any(line.cells()[4] for line in shown)
    for column in COLUMNS:
        if column != "options" or any_options:
            right = "right" if column == "bytes" else "left"
            made.add_column(column, footers.get(column, ""), justify=right, no_wrap=True)
    for line in shown:
        cells = line.cells()
        made.add_row(*(cells if any_options else (*cells[:4], cells[5])))
    return made


def print_plan(plan: Plan, every_layer: bool = False) -> None:
    """Table, notes and summary on standard output; a pipe gets every column in full."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    made = table(plan, every_layer)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(80, _full_width(made)))
    console.print(made)
    for note in plan.notes:
        console.print(Text(note), soft_wrap=True)
    console.print(Text(summary(plan)), soft_wrap=True)


def _full_width(made: Any) -> int:
    """Columns a table takes when nothing is cut off."""
    from rich.console import Console

    return Console(width=100_000).measure(made).maximum
