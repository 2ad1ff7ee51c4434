"""The planner's predictions against what runs: fitting its constants, and testing them.

    python -m bench.fit_check --measure fit --only llama-8b --threads 2    adds to fit_rows.json
    python -m bench.fit_check --fit                       the constants that these rows give
    python -m bench.fit_check --measure test --only qwen3 --threads 1
    python -m bench.fit_check --table                     docs/planner.md's table

Constants (optimize/estimate.py) come from the models of bench/fit_models.py at contexts of 128 and
2048; they are tested on bench.cpu's models at 512 and 4096. Both kinds of row hold what was
measured, with each figure the limits of its own moment, and the facts of the header.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import cpu_models
from bench.fit_models import FIT_MODELS
from bench.report import ROOT, table
from ktransformers.checkpoint.gguf import open_model
from ktransformers.optimize import estimate
from ktransformers.optimize.box import GB, Box
from ktransformers.optimize.facts import Group, ModelFacts, facts_of_model
from ktransformers.optimize.fit import fit, split_of

ROWS = Path(__file__).with_name("fit_rows.json")
JOBS = {
    "fit": {"contexts": [128, 2048], "prompt": 512, "decode": 24, "rounds": 3},
    "test": {"contexts": [512, 4096], "prompt": 512, "decode": 24, "rounds": 3},
}
MAX_OTHERS = 0.08  # CPUs that other processes may use during a measurement
MAX_DRIFT = 0.15  # by which a limit in its first and its second half may differ
PLAIN = ("layers", "hidden", "experts", "used", "kv_bytes", "attention_ops", "prompt_ops",
         "expand_ops")  # fmt: skip


TESTED = {"qwen3": 4, "v2-lite": 4, "mixtral": 2, "v3": 2}  # of bench.cpu; layers


def path_of(kind: str, name: str) -> Path:
    family = FIT_MODELS[name]() if kind == "fit" else cpu_models.WIDTHS[name].make(TESTED[name])
    return cpu_models.make(family, cpu_models.cache_folder())


def measure(kind: str, names: list[str], threads: list[int]) -> Iterator[dict]:
    """Rows as they are done. The facts are kept in them: constants can be fitted without files."""
    for name in names:
        path = path_of(kind, name)
        facts = facts_to_json(facts_of_model(open_model(path)))
        for count in threads:
            # A process each: memory that another left free would not be seen to be taken.
            done = subprocess.run(
                [sys.executable, "-m", "bench.fit_run"], text=True, cwd=ROOT,
                stdout=subprocess.PIPE,
                input=json.dumps(JOBS[kind] | {"model": str(path), "threads": count}),
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"bench.fit_run ended with {done.returncode}")
            head = {"kind": kind, "model": path.stem, "threads": count, "facts": facts,
                    "prompt_tokens": JOBS[kind]["prompt"]}  # fmt: skip
            yield head | json.loads(done.stdout.splitlines()[-1])


def facts_to_json(facts: ModelFacts) -> dict:
    """All fields, groups of one kind and size together."""
    groups: dict[tuple, int] = {}
    for group in facts.groups.values():
        key = (group.kind, group.layer >= 0, group.nbytes, round(group.active), round(group.ops))
        groups[key] = groups.get(key, 0) + 1
    plain = {name: getattr(facts, name) for name in PLAIN}
    return plain | {"groups": [[*key, count] for key, count in groups.items()]}


def facts_from_json(name: str, data: dict) -> ModelFacts:
    values = {key: value for key, value in data.items() if key != "groups"}
    facts, next_layer = ModelFacts(name, **values), {}
    for kind, is_layer, nbytes, active, ops, count in data["groups"]:
        for _ in range(count):
            number = next_layer.get(kind, 0) if is_layer else -1
            facts.groups[kind, number] = Group(kind, number, nbytes, active, ops)
            next_layer[kind] = number + 1
    return facts


def box_of(limits: dict) -> Box:
    """A machine of nothing but these limits."""
    return Box("row", 1000 * GB, limits["read_gbps"] * GB, limits["int8_tops"] * 1e12)


@dataclass(frozen=True)
class Timed:
    """One figure of a row. work: {part of the step: seconds at the limits of its moment}."""

    kind: str  # decode or prompt
    context: int  # positions before it
    seconds: float
    box: Box
    work: dict[str, float]


def timed(row: dict) -> list[Timed]:
    facts, found = facts_from_json(row["model"], row["facts"]), []
    count = row["prompt_tokens"]
    for kind in ("decode", "prompt"):
        for context, figure in row[kind].items():
            box = box_of(figure)
            split = split_of(fit(facts, box))
            start = int(context) if kind == "decode" or int(context) > count else 0
            if kind == "decode":
                work = estimate.decode_work(facts, box, split, start)
            else:
                work = estimate.prompt_work(facts, box, split, start, count)
            found.append(Timed(kind, start, figure["seconds"], box, work))
    return found


def constants(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Factors with the least sum of squared relative errors, none below 0."""
    made = {}
    for kind in ("decode", "prompt"):
        every = [one for row in rows for one in timed(row) if one.kind == kind]
        names = list(every[0].work)
        matrix = np.array([[one.work[name] / one.seconds for name in names] for one in every])
        made[kind] = dict(zip(names, positive_least_squares(matrix), strict=True))
    return made


def positive_least_squares(matrix: np.ndarray) -> list[float]:
    """x >= 0 that brings matrix @ x nearest to ones: the best of all choices of columns."""
    rows, columns = matrix.shape
    best, found = float("inf"), np.zeros(columns)
    for mask in range(1, 1 << columns):
        chosen = [i for i in range(columns) if mask >> i & 1]
        x, *_ = np.linalg.lstsq(matrix[:, chosen], np.ones(rows), rcond=None)
        if (x < 0).any():
            continue
        error = float(((matrix[:, chosen] @ x - 1) ** 2).sum())
        if error < best:
            best, found = error, np.zeros(columns)
            found[chosen] = x
    return [float(value) for value in found]


def predicted(row: dict) -> list[tuple[str, int, float, float]]:
    """[(decode or prompt, context, predicted tokens/s, measured tokens/s)] by the planner."""
    facts, made = facts_from_json(row["model"], row["facts"]), []
    for one in timed(row):
        if one.kind == "decode":
            guess, count = 1 / fit(facts, one.box, context=one.context).speed, 1
        else:
            guess, count = estimate.total(one.work, estimate.PROMPT), row["prompt_tokens"]
        made.append((one.kind, one.context, count / guess, count / one.seconds))
    return made


def promised_memory(row: dict) -> float:
    """Bytes the plan says a run with the row's cache takes."""
    facts, figure = facts_from_json(row["model"], row["facts"]), next(iter(row["decode"].values()))
    return fit(facts, box_of(figure), context=row["cache"]).used["cpu"]


def lines(rows: list[dict]) -> list[str]:
    cells, worst = [], 0.0
    for row in rows:
        for kind, context, guess, measured in predicted(row):
            error = guess / measured - 1
            worst = max(worst, abs(error)) if kind == "decode" else worst
            cells.append([row["model"], row["threads"], kind, context, f"{guess:.1f}",
                          f"{measured:.1f}", f"{100 * error:+.0f} %"])  # fmt: skip
        promise = promised_memory(row)
        cells.append([row["model"], row["threads"], "memory, GB", "", f"{promise / GB:.2f}",
                      f"{row['memory_after'] / GB:.2f}",
                      f"{100 * (promise / row['memory_after'] - 1):+.0f} %"])  # fmt: skip
    head = ["model", "threads", "what", "behind", "predicted", "measured", "error"]
    return [table(head, cells), f"largest error of decoding: {100 * worst:.0f} %"]


def tested_table() -> str:
    """docs/planner.md's table of what was predicted and measured."""
    out = [
        "| model | threads | behind | predicted, tokens/s | measured | error | prompt predicted | "
        "measured | error | memory predicted, GB | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in load_rows("test"):
        by_kind: dict[str, list] = {"decode": [], "prompt": []}
        for kind, context, guess, measured in predicted(row):
            cells = [f"{guess:.1f}", f"{measured:.1f}", f"{100 * (guess / measured - 1):+.0f} %"]
            by_kind[kind].append((context, cells))
        memory = [f"{promised_memory(row) / GB:.2f}", f"{row['memory_after'] / GB:.2f}"]
        for (context, decode), (_, prompt) in zip(*by_kind.values(), strict=True):
            name = row["model"].rpartition("-v")[0]
            cells = [name, str(row["threads"]), str(context), *decode, *prompt, *memory]
            out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def load_rows(kind: str) -> list[dict]:
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    return [row for row in rows if row["kind"] == kind]


def keep(row: dict) -> None:
    """Adds a row to the file, in place of an older one of the same."""
    key = ("kind", "model", "threads")
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    rows = [one for one in rows if any(one[k] != row[k] for k in key)] + [row]
    rows.sort(key=lambda one: [one[k] for k in key])
    ROWS.write_text("[\n" + ",\n".join(json.dumps(one) for one in rows) + "\n]\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fit_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--measure", choices=tuple(JOBS))
    parser.add_argument("--make", choices=tuple(JOBS), help="only write the models")
    parser.add_argument("--only", help="models, with commas")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(argv)
    kind = options.measure or options.make
    if kind:
        names = FIT_MODELS if kind == "fit" else TESTED
        names = options.only.split(",") if options.only else list(names)
        if options.make:
            print("\n".join(str(path_of(kind, name)) for name in names))
            return 0
        for row in measure(kind, names, [int(n) for n in options.threads.split(",")]):
            print("\n".join(lines([row])), flush=True)
            others, drift = row["others_cpus"], row["drift"]
            if others > MAX_OTHERS or drift > MAX_DRIFT:
                print(
                    f"VOID, not kept: others used {others:.2f} CPUs, the limits drifted {drift:.0%}"
                )
                continue
            keep(row)
    if options.fit:
        print(json.dumps(constants(load_rows("fit")), indent=1))
        print("\n".join(lines(load_rows("fit"))))
    if options.table:
        print(tested_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
