"""Our CPU engine and its peers on full-width synthetic models, against the machine's limits.

    python -m bench.cpu                     every model, prompts 512/2048/8192, decode
    python -m bench.cpu --quick             prompt 512 and decode, ours and llama.cpp: minutes
    python -m bench.cpu --models qwen3 --engines ours --layers 4     one question at a time
    python -m bench.cpu --make              only writes the models

Models (kept in KT_BENCH_MODELS or ~/.cache/ktransformers/bench): qwen3, v3, v2-lite, mixtral, and
smollm2, which is real. Limits are measured before and after each model; every figure stands beside
its fraction of them. A run is void where its limits, a peer or the routing show that it was
disturbed. Figures and plots go to bench/results/.
"""

import argparse
import sys
from pathlib import Path

from bench import cpu_layer, cpu_models, cpu_run, cpu_verdict, limits, report
from bench.cpu_work import work_of

LAYER = "moe-layer"
MODELS = (*cpu_models.WIDTHS, "smollm2", LAYER)
QUICK = cpu_run.Job([512], [128], decode=24, rows=[4], repeats=1)
FULL = cpu_run.Job([512, 2048, 8192], [128, 8192], rows=[4], rounds=2)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def choice_of(known: tuple[str, ...]):
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]}: choose from {', '.join(known)}")
        return names

    return parse


def parse(argv: list[str] | None):
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="prompt 512 and decode only")
    parser.add_argument("--models", type=choice_of(MODELS), help=",".join(MODELS))
    parser.add_argument(
        "--engines", "--only", type=choice_of(cpu_run.ENGINES), help=",".join(cpu_run.ENGINES)
    )
    parser.add_argument("--layers", type=int, help="layers instead of what memory allows")
    parser.add_argument("--prompts", type=numbers, help="lengths, e.g. 512,2048")
    parser.add_argument("--contexts", type=numbers, help="lengths that tokens are decoded behind")
    parser.add_argument("--decode", type=int, help="tokens decoded")
    parser.add_argument("--rounds", type=int, help="times each engine is started")
    parser.add_argument("--threads", type=int, default=0, help="0: all usable cores")
    parser.add_argument("--activations", default="auto", choices=("auto", "exact", "f32"))
    parser.add_argument("--no-details", action="store_true", help="no phases, no routing, no rows")
    parser.add_argument("--make", action="store_true", help="write the models and end")
    return parser.parse_args(argv)


def job_of(options) -> cpu_run.Job:
    job = QUICK if options.quick else FULL
    for name in ("prompts", "contexts", "decode", "rounds"):
        value = getattr(options, name)
        setattr(job, name, getattr(job, name) if value is None else value)
    job.threads, job.activations = options.threads, options.activations
    if options.no_details:
        job.details = False
    return job


def model_file(name: str, layers: int | None) -> tuple[str, Path] | None:
    """(name, file), written if need be; None where memory does not hold the smallest form."""
    if name == "smollm2":
        from tests.support import smollm2

        path = smollm2.dense_path()
        return path.stem, path
    family = cpu_models.sized(name, int(report.machine()["memory_gib"] * 2**30), layers)
    if family is None:
        return None
    return family.name, cpu_models.make(family, cpu_models.cache_folder())


def bench_model(name: str, path: Path, engines: list[str], job, first_ours: bool) -> dict:
    """Measures, prints and returns everything about one model."""
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.runtime.loading import model_config

    gguf = open_model(path)
    config = model_config(gguf)[1]
    work, vocab = work_of(gguf.tensors.values(), config), config["vocab_size"]
    layers = config["num_hidden_layers"]
    print(f"\n{name}, {layers} layers, {gguf.bytes_total / 1e9:.2f} GB, "
          f"{work.decode_bytes(0) / 1e6:.0f} MB a token", flush=True)  # fmt: skip
    del gguf
    found = cpu_run.measure(
        path, vocab, engines, job, first_ours, lambda line: print(line, flush=True)
    )
    best = cpu_verdict.best_limits(found["limits"])
    rows = cpu_verdict.rows_of(name, work, found)
    first = (found["runs"].get("ours") or [{}])[0]
    phases = cpu_verdict.phase_rows(work, first.get("phases", {}), best)
    routing = cpu_verdict.routing_rows(work, first.get("routing", {}))
    void = cpu_verdict.void_reasons(f"{name}-{layers}layers", report.machine(), found, routing)
    show(rows, ["work", "limit", *found["runs"], "fraction", "ratio", "avx2 ratio", "must",
                "verdict"])  # fmt: skip
    show(phases, ["step", "phase", "ms", "share", "MB", "GB/s", "GOP", "GOP/s", "of limit"])
    show(routing, ["tokens", "distinct", "least layer", "uniform", "share"])
    for reason in void:
        print(f"VOID: {reason}")
    return {
        "model": name, "layers": layers, "file_bytes": path.stat().st_size, "limits": best,
        "rows": rows, "phases": phases, "routing": routing, "void": void, "measured": found,
    }  # fmt: skip


def bench_layer(path: Path, job) -> dict:
    """One MoE layer beside kt-kernel; prints and returns the figures."""
    print(f"\nMoE layer of DeepSeek-V3 width, {cpu_layer.EXPERTS} experts, "
          f"{cpu_layer.USED} a token", flush=True)  # fmt: skip
    measured = limits.measure(job.threads)
    print(limits.line(measured))
    repeats = 2 * job.repeats
    found = cpu_layer.measure(path, measured["threads"], repeats, measured, print)
    columns = ["tokens", "limit ms", "ours ms", "kt-kernel ms", "fraction", "ratio", "must"]
    show(found["rows"], [*columns, "verdict"])
    return found | {"limits": measured}


def show(rows: list[dict], columns: list[str]) -> None:
    columns = [c for c in columns if any(row.get(c) not in (None, "") for row in rows)]
    if columns:
        cells = [[shown(row.get(column)) for column in columns] for row in rows]
        print("\n" + report.table(columns, cells), flush=True)


def shown(value):
    """Rates and times with as many digits as they are worth."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "-" if value is None else value


def main(argv: list[str] | None = None) -> int:
    from ktransformers.errors import UserError

    options = parse(argv)
    job = job_of(options)
    engines = options.engines or (["ours", "llama.cpp"] if options.quick else [*cpu_run.ENGINES])
    models = options.models or [*cpu_models.WIDTHS, LAYER]
    if LAYER in models and options.make and "v3" not in models:
        models = ["v3", *models]
    print(report.header())
    results = []
    layer: dict = {}
    for index, name in enumerate(models):
        try:
            made = model_file("v3" if name == LAYER else name, options.layers)
            if made is None:
                print(f"\n{name}: left out, a third of this machine's memory does not hold a layer")
                continue
            if options.make:
                print(made[1])
                continue
            if name == LAYER:
                layer = bench_layer(made[1], job)
                continue
            results.append(bench_model(*made, engines, job, first_ours=index % 2 == 0))
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if not results and not layer:
        return 0
    path = report.write_json("cpu", {"models": results, "layer": layer})
    print(f"\nfigures in {path.relative_to(report.ROOT)}")
    try:
        from bench.cpu_plots import plot
    except ImportError:
        print("no plots: pip install 'ktransformers[bench]' brings matplotlib")
    else:
        for image in results and plot(results, report.RESULTS):
            print(f"plot in {image.relative_to(report.ROOT)}")
    return 1 if any(result["void"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
