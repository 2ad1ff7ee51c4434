"""Our CPU engine and its peers on full-width synthetic models, against the machine's limits.

    python -m bench.cpu                     every model, prompts to 8192, contexts to 32768: hours
    python -m bench.cpu --quick             prompt 512 and decode, ours and llama.cpp: minutes
    python -m bench.cpu --models qwen3 --engines ours --layers 4     one question at a time
    python -m bench.cpu --make              only writes the models

Models (kept in KT_BENCH_MODELS or ~/.cache/ktransformers/bench): qwen3, v3, v2-lite, mixtral;
qwen3-32k, fewer layers of qwen3 for a context that peers would take an hour to evaluate; smollm2,
which is real; moe-layer, one layer beside kt-kernel. What is compared takes turns within seconds,
and stands beside the limits of its own moment. A row is void where fewer than three of its turns
(one of a prompt) met the limits that this machine is known to have, or where a peer was slow.
Figures and plots go to bench/results/, a model's replacing its older ones; `python -m
bench.cpu_tables --write` puts them into docs/cpu.md.
"""

import argparse
import sys
import time
from pathlib import Path

from bench import cpu_layer, cpu_models, cpu_run, cpu_tables, cpu_verdict, report
from bench.cpu_run import Job
from bench.cpu_tables import LAYER
from bench.cpu_work import work_of

LONG, LONG_LAYERS = "qwen3-32k", 4
MODELS = (*cpu_models.WIDTHS, LONG, "smollm2", LAYER)
QUICK_MODELS = (*cpu_models.WIDTHS, LAYER)
LEFT_OUT = (
    f"--quick leaves out: prompts other than 512, contexts other than 128, rows decoded together, "
    f"the engines of AVX2, {LONG}, smollm2, seven of twelve turns, two of three of prompts"
)
PATIENCE = 10.0  # minutes that two engines on a model of a full run may wait for turns that count


def numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",") if part]
    if any(number < 1 for number in found):
        raise ValueError(text)
    return found


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def choice_of(known: tuple[str, ...]):
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]}: choose from {', '.join(known)}")
        return names

    return parse


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="prompt 512 and decode only")
    parser.add_argument("--models", type=choice_of(MODELS), help=",".join(MODELS))
    parser.add_argument(
        "--engines", "--only", type=choice_of(cpu_run.ENGINES), help=",".join(cpu_run.ENGINES)
    )
    parser.add_argument("--layers", type=positive, help="layers instead of what memory allows")
    parser.add_argument("--prompts", type=numbers, help="lengths, e.g. 512,2048")
    parser.add_argument("--contexts", type=numbers, help="lengths that tokens are decoded behind")
    parser.add_argument("--turns", type=positive, help="of decode, four tokens each")
    parser.add_argument("--threads", type=int, default=0, help="0: all usable cores")
    parser.add_argument("--activations", default="auto", choices=("auto", "exact", "f32"))
    parser.add_argument("--no-details", action="store_true", help="no phases, no routing, no rows")
    parser.add_argument(
        "--patience", type=float, metavar="MINUTES",
        help=f"of two engines on a model, for further turns of decode while too few count; "
        f"{PATIENCE:.0f} in a full run",
    )  # fmt: skip
    parser.add_argument("--make", action="store_true", help="write the models and end")
    options = parser.parse_args(argv)
    if LAYER in (options.models or ()) and (options.engines or options.activations != "auto"):
        parser.error(f"{LAYER} has engines of its own and the default arithmetic: leave out "
                     "--engines and --activations")  # fmt: skip
    return options


def job_of(name: str, options: argparse.Namespace) -> Job:
    """What is measured of a model."""
    job = Job([128, 512, 2048, 8192], [128, 8192], rows=[4], patience=60 * PATIENCE)
    if options.quick:
        job = Job([512], [128], turns=5, prompt_turns=1)
    elif name == LONG:
        job.prompts, job.contexts, job.rows, job.details = [], [128, 8192, 32768], [], False
    elif name == "smollm2":
        job.prompts, job.contexts, job.rows = [512], [128], []
    for field in ("prompts", "contexts", "turns"):
        value = getattr(options, field)
        setattr(job, field, getattr(job, field) if value is None else value)
    job.threads, job.activations = options.threads, options.activations
    if options.patience is not None:
        job.patience = 60 * options.patience
    if options.no_details:
        job.details, job.rows = False, []
    return job


def mode_of(options: argparse.Namespace) -> str:
    """full, quick, or part: of which the page shows nothing."""
    narrowed = (options.layers, options.prompts, options.contexts, options.turns, options.engines,
                options.threads or None, options.no_details or None)  # fmt: skip
    if any(value is not None for value in narrowed) or options.activations != "auto":
        return "part"
    return "quick" if options.quick else "full"


def model_file(name: str, layers: int | None) -> tuple[str, Path] | None:
    """(name, file), written if need be; None where memory does not hold the smallest form."""
    if name == "smollm2":
        from tests.support import smollm2

        path = smollm2.dense_path()
        return path.stem, path
    width = {LAYER: "v3", LONG: "qwen3"}.get(name, name)
    if name in (LAYER, LONG):  # of their own size whatever is asked of the others
        layers = LONG_LAYERS if name == LONG else None
    family = cpu_models.sized(width, int(report.machine()["memory_gib"] * 2**30), layers)
    if family is None:
        return None
    return family.name, cpu_models.make(family, cpu_models.cache_folder())


def say(line: str) -> None:
    print(line, flush=True)


def bench_model(name: str, path: Path, engines: list[str], job: Job) -> dict:
    """Measures one model -> its entry."""
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.runtime.loading import model_config

    gguf = open_model(path)
    config = model_config(gguf)[1]
    work, vocab = work_of(gguf.tensors.values(), config), config["vocab_size"]
    layers = config["num_hidden_layers"]
    del gguf
    entry = {"model": name, "layers": layers, "file_bytes": path.stat().st_size}
    say(f"\n{cpu_tables.title(entry)}; {work.decode_bytes(0) / 1e6:.0f} MB a token")
    found = cpu_run.measure(path, vocab, engines, job, say)
    routing = cpu_verdict.routing_rows(work, found["routing"])
    return entry | {
        "engines": found["engines"], "missing": found["missing"],
        "rows": cpu_verdict.rows_of(f"{name}-{layers}layers", work, found, report.machine()),
        "phases": cpu_verdict.phase_rows(work, found["phases"]), "routing": routing,
        "void": cpu_verdict.uneven(routing),
        "turns": {"groups": found["groups"], "phases": found["phases"]},
    }  # fmt: skip


def bench_layer(path: Path, job: Job, is_quick: bool) -> dict:
    """One MoE layer beside kt-kernel -> its entry."""
    entry = {"model": LAYER, "layers": 1, "file_bytes": path.stat().st_size, "void": []}
    say(f"\n{cpu_tables.title(entry)}")
    turns = {1: job.turns, 512: 1 if is_quick else 4}
    return entry | cpu_layer.measure(path, job.threads, turns, say)


def keep(entry: dict, mode: str, argv: list[str]) -> Path:
    """Puts an entry beside those of other models and other modes. Returns the file."""
    here = {"machine": report.machine(), "commit": report.commit(), "mode": mode,
            "command": " ".join(["python -m bench.cpu", *argv]),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
    entries = cpu_tables.entries_of(report.RESULTS / "cpu.json")
    entries[cpu_tables.key_of(entry | here)] = entry | here
    return report.write_json("cpu", {"entries": entries})


def is_void(entry: dict) -> bool:
    return bool(entry["void"]) or any(row["void"] for row in entry["rows"])


def main(argv: list[str] | None = None) -> int:
    from ktransformers.errors import UserError

    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    engines = options.engines or (["ours", "llama.cpp"] if options.quick else [*cpu_run.ENGINES])
    models = options.models or (QUICK_MODELS if options.quick or options.make else MODELS)
    print(report.header())
    if options.quick:
        print(LEFT_OUT)
    measured = []
    for name in models:
        try:
            made = model_file(name, options.layers)
            if made is None:
                say(f"\n{name}: left out, a third of this machine's memory does not hold a layer")
                continue
            if options.make:
                print(made[1])
                continue
            job = job_of(name, options)
            if name == LAYER:
                entry = bench_layer(made[1], job, options.quick)
            else:
                entry = bench_model(*made, engines, job)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        path = keep(entry, mode_of(options), argv)
        say("\n" + cpu_tables.text(entry))
        measured.append(entry)
    if not measured:
        return 0
    say(f"\nfigures in {path.relative_to(report.ROOT)}")
    for image in cpu_tables.plots(measured, report.RESULTS):
        print(f"plot in {image.relative_to(report.ROOT)}")
    return 1 if any(map(is_void, measured)) else 0


if __name__ == "__main__":
    sys.exit(main())
