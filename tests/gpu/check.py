"""Runs the steps of tests/gpu/check.sh (steps.py): what came of each.

Only the standard library: this file must run where nothing is installed. Builds run side by side,
everything else alone, so that times mean something. A step whose needs are not met is skipped with
the reason; a step that fails does not stop the others; one for which no time is left is cut.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.gpu import sessions  # noqa: E402
from tests.gpu.needs import (  # noqa: E402
    NEEDS,
    REMEDIES,
    carried_environment,
    cuda_arch,
    fails_to_import,
    unpack_carried,
)
from tests.gpu.steps import CUDA_BUILD, LEAST_SECONDS, TOTAL_SECONDS, Step, granted, steps  # noqa: E402

TRAVEL_BYTES = 64 << 20
PACKAGES = ("numpy", "torch", "transformers", "pytest", "gguf", "pybind11")


@dataclass
class Outcome:
    name: str
    verdict: str  # ok, FAILED, skipped, cut
    seconds: float = 0.0
    reason: str = ""
    output: str = ""
    figures: dict = field(default_factory=dict)


def unmet(step: Step, outcomes: dict[str, Outcome]) -> str:
    """Why the step cannot run; empty where it can. A need is another step, or one of NEEDS."""
    for need in step.needs:
        if need in NEEDS:
            if reason := NEEDS[need]():
                return reason
        elif need not in outcomes:
            continue  # not chosen: its result is expected to be there
        elif outcomes[need].verdict != "ok":
            return f"{need} {outcomes[need].verdict}"
    return ""


def run(step: Step, seconds: float) -> Outcome:
    """Runs the commands, for so many seconds at most. It has failed when they are its own limit,
    and is cut when they are fewer and not enough."""
    begin = time.monotonic()
    environment = carried_environment() | step.environment
    output = ""
    for command in step.commands:
        if shutil.which(command[0]) is None and not (ROOT / command[0]).exists():
            output += f"$ {command[0]}: not here\n"
            if step.name != "machine":
                return Outcome(step.name, "FAILED", 0, f"{command[0]} is not here", output)
            continue
        left = begin + seconds - time.monotonic()
        text, code = sessions.run(command, left, ROOT, environment)
        output += f"$ {shlex.join(command)}\n{text}"
        if code != 0:
            words = [line for line in text.strip().splitlines() if line.strip()][-1:] or [""]
            verdict, reason = "FAILED", f"status {code}: {words[0][:200]}"
            if code == sessions.OUT_OF_TIME:
                reason = f"out of time: {step.seconds:.0f} s"
                if seconds < step.seconds:
                    verdict, reason = "cut", f"{seconds:.0f} of {step.seconds:.0f} s were left"
            return Outcome(step.name, verdict, time.monotonic() - begin, reason, output,
                           figures_of(step))  # fmt: skip
    return Outcome(step.name, "ok", time.monotonic() - begin, "", output, figures_of(step))


def figures_of(step: Step) -> dict:
    path = ROOT / step.result if step.result else None
    if path is None or not path.exists():
        return {}
    text = path.read_text(errors="replace")
    path.unlink()  # the next step that writes it must not be taken for this one
    try:
        figures = json.loads(text)
    except ValueError:  # its step was ended while it wrote
        return {}
    return figures if isinstance(figures, dict) else {}


def batches(chosen: list[Step]) -> list[list[Step]]:
    """Steps of one group together, where the first of them stands."""
    made: dict[str, list[Step]] = {}
    for step in chosen:
        made.setdefault(step.group or step.name, []).append(step)
    return list(made.values())


def run_all(chosen: list[Step], out: Path, total: float = TOTAL_SECONDS) -> list[Outcome]:
    begin = time.monotonic()
    outcomes: dict[str, Outcome] = {}

    def one(step: Step, seconds: float) -> Outcome:
        if reason := unmet(step, outcomes):
            return Outcome(step.name, "skipped", reason=reason)
        if seconds < min(LEAST_SECONDS, step.seconds):
            return Outcome(step.name, "cut", reason="no time left")
        return run(step, seconds)

    todo = batches(chosen)
    for number, batch in enumerate(todo):
        # What cannot run is sure of nothing.
        later = [s for more in todo[number + 1 :] for s in more
                 if s.kept and not unmet(s, outcomes)]  # fmt: skip
        left = total - (time.monotonic() - begin)
        with ThreadPoolExecutor(len(batch)) as pool:
            times = [granted(step, later, left) for step in batch]
            for outcome in list(pool.map(one, batch, times)):
                outcomes[outcome.name] = outcome
                tell(outcome, out)
                write_report(list(outcomes.values()), time.monotonic() - begin, out)
    return list(outcomes.values())


def write_report(outcomes: list[Outcome], seconds: float, out: Path) -> None:
    """After every step: whoever ends this run finds what is known by then."""
    report = {"seconds": seconds, "steps": [vars(o) for o in outcomes]}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def tell(outcome: Outcome, out: Path) -> None:
    """The whole output to the log, its end to the terminal unless it is a good build's."""
    head = f"{outcome.name}: {outcome.verdict} {outcome.seconds:.0f} s {outcome.reason}"
    with (out / "log.txt").open("a") as log:
        log.write(f"==== {head}\n{outcome.output}\n")
    print(f"-- {head}", flush=True)
    if outcome.verdict == "FAILED" or not outcome.name.endswith("-build"):
        print("\n".join(outcome.output.splitlines()[-60:]), flush=True)


def problems(chosen: list[Step]) -> list[str]:
    """What would fail anywhere: a file that does not parse, a module that is not there, a tree
    that is too large to travel."""
    found = []
    for path in [*ROOT.glob("tests/gpu/*.py"), *ROOT.glob("bench/**/*.py")]:
        try:
            compile(path.read_text(), str(path), "exec")
        except SyntaxError as error:
            found.append(f"{path.relative_to(ROOT)}:{error.lineno}: {error.msg}")
    for path in ROOT.glob("tests/gpu/*.sh"):
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
        found += done.stderr.splitlines()
    for step in chosen:
        for command in step.commands:
            for word in command:
                file = word.split("::")[0]
                if file.startswith("tests/") and not (ROOT / file).exists():
                    found.append(f"{step.name}: {word} is not there")
            if "-m" in command and (module := command[command.index("-m") + 1]) != "pytest":
                parts = ROOT.joinpath(*module.split("."))
                if not (parts.with_suffix(".py").exists() or (parts / "__main__.py").exists()):
                    found.append(f"{step.name}: no module {module}")
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                           capture_output=True, text=True).stdout.split("\0")  # fmt: skip
    size = sum((ROOT / n).stat().st_size for n in names if n and (ROOT / n).is_file())
    if size > TRAVEL_BYTES:
        found.append(f"the tree has {size >> 20} MiB, {TRAVEL_BYTES >> 20} travel")
    return found


def missing(chosen: list[Step]) -> list[str]:
    """A line for each thing that the steps need and this machine has not."""
    lines = []
    needs = dict.fromkeys(need for step in chosen for need in step.needs if need in NEEDS)
    there = [need for need in needs if need in PACKAGES and not NEEDS[need]()]
    any_fails = bool(there) and fails_to_import(", ".join(there))  # together in half the time
    for need in needs:
        reason = NEEDS[need]()
        if not reason and any_fails and need in there:
            reason = fails_to_import(need)
        if reason:
            names = ", ".join(step.name for step in chosen if need in step.needs)
            remedy = f"; {REMEDIES[need]}" if need in REMEDIES else ""
            lines.append(f"{reason}{remedy} (without it no {names})")
    return lines


def dry_run(chosen: list[Step]) -> int:
    for step in chosen:
        reason = unmet(step, {})
        note = f"not here: {reason}" if reason else ""
        kept = f"{step.kept:.0f} s of them kept" if step.kept else "with what time is left"
        print(f"{step.name:<14} <= {step.seconds:3.0f} s, {kept}  {note}")
        for command in step.commands:
            print(f"{'':<14} $ {shlex.join(command)}")
    for line in missing(chosen):
        print(f"MISSING: {line}")
    found = problems(chosen)
    for problem in found:
        print(f"PROBLEM: {problem}")
    print(f"{len(chosen)} steps, {len(found)} problems; all time together: {TOTAL_SECONDS:.0f} s")
    return int(bool(found))


def table(outcomes: list[Outcome]) -> str:
    lines = [f"{o.name:<14} {o.verdict:<8} {o.seconds:6.1f} s  {o.reason}" for o in outcomes]
    rows = [row for o in outcomes for row in o.figures.get("rows", [])]
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if row.get("ratio") is not None else "-"
        lines.append(f"{row['work']:<48} {row['us']:10.1f} us  ratio {ratio:>6}  "
                     f"must {row.get('must') or '-'}  {row['verdict']}")  # fmt: skip
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/gpu/check.sh")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", help="names of steps, with commas between")
    options = parser.parse_args(argv)
    unpack_carried()
    chosen = steps(cuda_arch())
    if options.only:
        wanted = options.only.split(",")
        known = {step.name for step in chosen}
        if unknown := [name for name in wanted if name not in known]:
            parser.error(f"--only {unknown[0]}: steps are {', '.join(sorted(known))}")
        chosen = [step for step in chosen if step.name in wanted]
    if options.dry_run:
        return dry_run(chosen)
    out = Path(os.environ.get("OUT") or ROOT / CUDA_BUILD / "report")
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.txt").unlink(missing_ok=True)
    (ROOT / "bench" / "results").mkdir(exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, sessions.end_all)
    begin = time.monotonic()
    outcomes = run_all(chosen, out)
    print(table(outcomes))
    if cut := [o.name for o in outcomes if o.verdict == "cut"]:
        print(f"cut for want of time: {', '.join(cut)}; --only {','.join(cut)} runs them")
    print(f"{time.monotonic() - begin:.0f} s; report.json and log.txt in {out}")
    sure = {step.name for step in chosen if step.kept}
    return int(any(o.verdict == "FAILED" or o.verdict == "cut" and o.name in sure
                   for o in outcomes))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
