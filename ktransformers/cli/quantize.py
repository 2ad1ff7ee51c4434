"""`ktransformers quantize`: a folder or a GGUF file becomes a smaller GGUF file. No torch."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ktransformers.checkpoint import quantize as work
from ktransformers.checkpoint.folder_model import FolderModel
from ktransformers.checkpoint.gguf import GGUFFile, open_model
from ktransformers.checkpoint.presets import (
    KEEP,
    Override,
    choose_types,
    default_preset,
    file_type,
    preset,
    writable,
)
from ktransformers.cli.inspect import size
from ktransformers.errors import UserError

ALREADY_ROUNDED = ("f32", "f16", "bf16", "fp8")


class Bar:
    """One line that is rewritten on a terminal: share, speed, time left; silent in a pipe."""

    def __init__(self):
        self.start = self.shown = time.monotonic()
        self.first: int | None = None
        self.active = sys.stderr.isatty()

    def __call__(self, done: int, total: int, name: str) -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if not self.active or (now - self.shown < 0.1 and done < total):
            return
        self.shown = now
        speed = (done - self.first) / max(now - self.start, 1e-3)
        left = (total - done) / speed if speed else 0
        filled = 30 * done // max(total, 1)
        line = f"\r[{'#' * filled}{'.' * (30 - filled)}] {100 * done // max(total, 1):3d} % "
        line += f"{size(speed)}/s, {left / 60:.0f} min left  {name:<36.36}"
        print(line if done < total else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def run(
    source: str,
    out: str,
    preset_name: str | None = None,
    tensors: Sequence[str] = (),
    recipe: str | None = None,
    threads: int = 0,
    dry_run: bool = False,
) -> None:
    """Checks everything that can be checked, then converts. Raises: UserError."""
    chosen = preset(preset_name) if preset_name else None
    overrides = [parse_override(text) for text in tensors]
    overrides += read_recipe(recipe) if recipe else []
    model = open_model(source)
    chosen = chosen or default_preset(model)
    types = choose_types(model, chosen, overrides)
    for line in remarks(model, types) + (model.remarks() if chosen is KEEP else []):
        print(f"note: {line}", file=sys.stderr)
    print_types(model, types, chosen.name)
    if dry_run:
        return
    start = time.monotonic()
    try:
        kind = file_type(chosen, types, model)
        report = work.quantize_model(model, out, types, kind, threads, Bar())
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on with {out}.part", file=sys.stderr)
        raise
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    resumed = f", {report.resumed} tensors of it by an earlier run" if report.resumed else ""
    print(f"{out}: {size(report.nbytes)} in {time.monotonic() - start:.1f} s{resumed}")
    worst = sorted(report.outcomes.items(), key=lambda item: -item[1].error)[:3]
    for name, outcome in worst:
        print(f"  largest error: {name} as {outcome.type}: {100 * outcome.error:.2f} % of its rms")


def print_types(model: GGUFFile, types: dict[str, str], name: str) -> None:
    """What is written, by type."""
    sizes = work.tensor_bytes(model, types)
    counts, nbytes = Counter(types.values()), Counter()
    for tensor, kind in types.items():
        nbytes[kind] += sizes[tensor]
    values = sum(int_product(info.shape) for info in model.tensors.values())
    total = sum(nbytes.values())
    print(f"{name}: {size(total)} from {size(model.stored_bytes())}, {8 * total / values:.2f} bits "
          "per weight")  # fmt: skip
    for kind, count in nbytes.most_common():
        print(f"  {kind:<8} {counts[kind]:>6} tensors  {size(count):>10}")


def int_product(shape: Sequence[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def remarks(model: GGUFFile, types: dict[str, str]) -> list[str]:
    """What the user should know before hours of work."""
    found = []
    rounded = Counter(
        model.stored_type(name)
        for name, kind in types.items()
        if model.stored_type(name) not in (*ALREADY_ROUNDED, kind)
        and not (isinstance(model, FolderModel) and model.keeps_codes(name, kind))
    )
    if rounded:
        kinds = ", ".join(f"{count} {kind}" for kind, count in rounded.most_common())
        found.append(
            f"rounded twice: {kinds} tensors are quantised already; a BF16 source is better"
        )
    drafts = getattr(model, "draft_tensors", ())
    if drafts:
        found.append(f"left out: {len(drafts)} tensors of layers that only draft tokens")
    return found


def parse_override(text: str) -> Override:
    """ "ffn_down=q6_k" -> an Override. Raises: UserError."""
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern:
        raise UserError(f"--tensor {text}: write REGEX=TYPE, as in ffn_down_exps=q6_k")
    return make_override(pattern, kind.strip().lower(), f"--tensor {text}")


def make_override(pattern: str, kind: str, where: str) -> Override:
    from ktransformers.optimize.patterns import NamePattern, PatternError

    try:
        found = NamePattern(pattern)
    except PatternError as error:
        raise UserError(f"{where}: {error}") from None
    return Override(pattern, writable(kind, where), found.search)


def read_recipe(path: str) -> list[Override]:
    """A YAML list of {tensor: REGEX, type: TYPE}; the first that matches counts."""
    from ktransformers.optimize.rules import read_yaml
    from ktransformers.optimize.rules_own import known_fields

    found = []
    for entry in read_yaml(Path(path), "a recipe").items():
        fields = known_fields(entry, ("tensor", "type"))
        for key in ("tensor", "type"):
            if key not in fields:
                raise entry.fail(f"the entry has no {key}")
        place, kind = fields["type"][1].place, fields["type"][1].text().lower()
        found.append(make_override(fields["tensor"][1].text(), kind, str(place)))
    return found
