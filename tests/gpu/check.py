"""The steps of tests/gpu/check.sh: what each needs, how long it may take, what came of it.

Only the standard library: this file must run where nothing is installed. Builds run side by side,
everything else alone, so that times mean something. A step whose needs are not met is skipped with
the reason; a step that fails does not stop the others.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.gpu.needs import NEEDS, carried_environment, cuda_arch, unpack_carried  # noqa: E402

CUDA_BUILD, CPU_BUILD = "build-gpu", "build-gpu-cpu"
LIBRARY = f"{CUDA_BUILD}/csrc/cuda/libkt_cuda.so"
TESTS = f"{CUDA_BUILD}/csrc/cuda/kt_gpu_tests"
DECODE = f"{CUDA_BUILD}/csrc/cuda/kt_gpu_decode"
TOTAL_SECONDS = 570.0
TRAVEL_BYTES = 64 << 20
THREADS = (16, 8, 4, 2, 1)


@dataclass
class Step:
    """command: argv, or a list of argvs run one after another. group: steps of one run together."""

    name: str
    commands: list[list[str]]
    seconds: float
    needs: tuple[str, ...] = ()
    group: str = ""
    result: str = ""  # a JSON file that the report takes in
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    name: str
    verdict: str  # ok, FAILED, skipped
    seconds: float = 0.0
    reason: str = ""
    output: str = ""
    figures: dict = field(default_factory=dict)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def steps(arch: str) -> list[Step]:
    """Every step in order; what matters most comes first, in case time runs out."""
    cuda = ["cmake", "-S", ".", "-B", CUDA_BUILD, "-G", "Ninja", "-DKT_CUDA=ON",
            "-DKT_GPU_TESTS=ON", "-DKT_BUILD_PYTHON=OFF",
            f"-DCMAKE_CUDA_ARCHITECTURES={arch}"]  # fmt: skip
    cpu = ["cmake", "-S", ".", "-B", CPU_BUILD, "-G", "Ninja",
           f"-DPython_EXECUTABLE={sys.executable}"]  # fmt: skip
    cores = len(os.sched_getaffinity(0))  # two are left to the coordinator and the launching thread
    bench = {"PYTHONUNBUFFERED": "1", "KT_CUDA_LIBRARY": LIBRARY}
    found = [
        Step("machine", [["lscpu"], ["nvidia-smi"], ["nvcc", "--version"]], 20),
        Step("cuda-build", [cuda, ["cmake", "--build", CUDA_BUILD, "--", "--quiet"]], 300,
             ("nvcc", "cmake", "ninja"), group="builds"),
        Step("cpu-build", [cpu, ["cmake", "--build", CPU_BUILD, "--target", "_core", "--",
                                 "--quiet"]], 300,
             ("cmake", "ninja", "yaml-cpp", "pybind11", "python-headers"), group="builds"),
        Step("gpu-tests", [[TESTS]], 120, ("gpu", "cuda-build")),
        Step("models", [python("-m", "pytest", "-q", "-p", "no:cacheprovider",
                               "tests/python/test_card.py")], 120,
             ("gpu", "cuda-build", "cpu-build", "gguf", "transformers", "pytest"),
             environment={"KT_TEST_CUDA_LIBRARY": LIBRARY}),
        Step("cuda-bench", [python("-m", "bench.cuda")], 200, ("gpu", "torch-cuda", "cuda-build"),
             result="bench/results/cuda.json", environment=bench),
        Step("decode-step", [[DECODE, "--threads", str(max(1, cores - 2)), "--json",
                              "bench/results/cuda_decode.json"]], 120, ("gpu", "cuda-build"),
             result="bench/results/cuda_decode.json"),
        Step("v3-shape", [[DECODE, "--layers", "61", "--threads", str(max(1, cores - 2)), "--json",
                           "bench/results/cuda_v3.json"]], 150, ("gpu", "cuda-build", "ram-110g"),
             result="bench/results/cuda_v3.json"),
        Step("amx-tests", [python("-m", "pytest", "-q", "-p", "no:cacheprovider",
                                  "tests/python/test_kernels.py")], 120,
             ("cpu-build", "gguf", "amx")),
        Step("cpu-limits", [python("-m", "bench.limits", "--threads", "1,2,4,8,16")], 40,
             ("cpu-build",)),
        Step("cpu-model", [python("-m", "bench.cpu", "--make", "--models", "qwen3", "--layers",
                                  "6")], 60, ("cpu-build", "gguf", "transformers")),
    ]  # fmt: skip
    for threads in [t for t in THREADS if t <= cores]:
        command = python("-m", "bench.cpu", "--quick", "--models", "qwen3", "--layers",
                         "6", "--engines", "ours", "--threads", f"{threads}",
                         "--no-details")  # fmt: skip
        found.append(Step(f"cpu-bench-{threads}", [command], 60, ("cpu-model",),
                          result="bench/results/cpu.json"))  # fmt: skip
    found.append(
        Step("sanitizer", [["compute-sanitizer", "--error-exitcode", "9", TESTS, "Int4Gemm",
                            "QuantGemv", "Layer", "Moe"]], 120,
             ("gpu", "compute-sanitizer", "cuda-build"))
    )  # fmt: skip
    return found


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


def run(step: Step, left: float) -> Outcome:
    """Runs the commands; the step's limit, or what is left of all time, ends them."""
    begin = time.monotonic()
    end = begin + min(step.seconds, left)
    environment = carried_environment() | step.environment
    output = ""
    for command in step.commands:
        if shutil.which(command[0]) is None and not (ROOT / command[0]).exists():
            output += f"$ {command[0]}: not here\n"
            if step.name != "machine":
                return Outcome(step.name, "FAILED", 0, f"{command[0]} is not here", output)
            continue
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                stderr=subprocess.STDOUT, errors="replace",
                timeout=max(1.0, end - time.monotonic()), check=False,
            )  # fmt: skip
            text, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            text = error.stdout or b""
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            code = 124
        output += f"$ {shlex.join(command)}\n{text}"
        if code != 0:
            words = [line for line in text.strip().splitlines() if line.strip()][-1:] or [""]
            reason = "out of time" if code == 124 else f"status {code}: {words[0][:200]}"
            return Outcome(step.name, "FAILED", time.monotonic() - begin, reason, output,
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


def run_all(chosen: list[Step], out: Path) -> list[Outcome]:
    begin = time.monotonic()
    outcomes: dict[str, Outcome] = {}

    def left() -> float:
        return TOTAL_SECONDS - (time.monotonic() - begin)

    def one(step: Step) -> Outcome:
        reason = unmet(step, outcomes) or ("no time left" if left() < 10 else "")
        return Outcome(step.name, "skipped", reason=reason) if reason else run(step, left())

    for batch in batches(chosen):
        with ThreadPoolExecutor(len(batch)) as pool:
            for outcome in list(pool.map(one, batch)):
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
                if word.startswith("tests/") and not (ROOT / word).exists():
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


def dry_run(chosen: list[Step]) -> int:
    for step in chosen:
        reason = unmet(step, {})
        note = f"not here: {reason}" if reason else ""
        print(f"{step.name:<14} <= {step.seconds:3.0f} s  {note}")
        for command in step.commands:
            print(f"{'':<14} $ {shlex.join(command)}")
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
    begin = time.monotonic()
    outcomes = run_all(chosen, out)
    print(table(outcomes))
    print(f"{time.monotonic() - begin:.0f} s; report.json and log.txt in {out}")
    return int(any(o.verdict == "FAILED" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
