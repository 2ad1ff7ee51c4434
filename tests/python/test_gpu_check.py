"""The GPU benchmarks and their script, without a GPU: the same code on emulated kernels, and the
script's own decisions. What is wrong here would cost minutes on a borrowed machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cuda import __main__ as bench_cuda
from bench.cuda import handoff, timeline
from ktransformers.cuda_library import CudaLibrary, CudaLibraryError
from tests.gpu import check, needs, sessions, steps
from tests.tools import kernel_table

ROOT = Path(__file__).parents[2]
EMULATED = ROOT / os.environ.get("KT_OBJECTS", "build") / "libkt_cuda_emulated_api.so"


@pytest.fixture(scope="module")
def library():
    if not EMULATED.exists():
        pytest.skip(f"{EMULATED} is not built: it comes with -DKT_BUILD_TESTS=ON")
    return CudaLibrary(EMULATED)


def test_every_benchmark_runs_on_emulated_kernels(library, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_cuda.report, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_cuda.report, "ROOT", tmp_path)
    status = bench_cuda.main(["--emulated", str(EMULATED)])
    found = json.loads((tmp_path / "cuda_emulated.json").read_text())
    assert found["failed"] == {} and status == 0
    parts = {row["work"].split()[0] for row in found["rows"]}
    assert parts == {"hand-off", "int4", "q4_k", "q6_k", "q8_0", "f16", "MLA", "experts"}
    for row in found["rows"]:
        assert row["us"] > 0 and row["verdict"] == "", row
        assert row.get("nmse", 0) <= 5e-5, row


def test_a_wrong_or_slow_result_is_called_so():
    row = {"right": True, "ratio": 0.9, "must": 1.0}
    assert bench_cuda.verdict(row) == "short"
    assert bench_cuda.verdict(row | {"ratio": 1.0}) == "ok"
    assert bench_cuda.verdict(row | {"right": False, "ratio": 2.0}) == "wrong"
    # One hand-off in fifty is late: the median is fine, the 99th percentile is not.
    times = [5.0] * 980 + [100.0] * 20
    late = handoff.row(0, times, bars=True)
    assert late["us"] == 5.0 and late["p99_us"] == 100.0
    assert bench_cuda.verdict(late) == "short"


def test_the_timeline_shows_what_deferral_wins(library):
    moe = timeline.MOE | timeline.SHARED | timeline.ON_CPU
    ends = []
    for deferred in (0, 3):
        flags = [moe | (timeline.DEFERS if deferred else 0)] * 2 + [moe]
        machine = timeline.Machine(deferred=deferred)
        spans = timeline.simulate(timeline.operations(library, flags), machine)
        work = [s.end - s.begin for s in spans if s.lane == "cpu"]
        assert sum(work) == pytest.approx(3 * timeline.CPU_MB * 1e3 / machine.cpu_gbps)
        assert len(work) == (5 if deferred else 3)
        ends.append(max(span.end for span in spans))
    late = [s for s in spans if s.name == "deferred experts"]
    for one in late:  # beside the next layer's attention
        assert any(s.name == "attention" and one.begin < s.end and s.begin < one.end for s in spans)
    assert ends[1] < ends[0]


def test_the_timeline_keeps_what_waits_for_what(library):
    moe = timeline.MOE | timeline.SHARED | timeline.ON_CPU | timeline.IN_SLOTS
    lines = timeline.operations(library, [0, moe])
    assert [line[0] for line in lines if line[0] in ("post", "await")] == ["post", "await"]
    machine = timeline.Machine(gpu_gbps=1000.0, cpu_gbps=100.0, launch_us=1.0, handoff_us=2.0)
    spans = {(s.lane, s.name): s for s in timeline.simulate(lines, machine)}
    copied, experts = spans["main", "copy to host"], spans["cpu", "experts"]
    assert experts.begin == copied.end + 2.0
    assert experts.end - experts.begin == pytest.approx(timeline.CPU_MB * 10)
    # Shared and resident experts run while the CPU works, each on its own stream.
    shared, resident = spans["side", "shared expert"], spans["main", "resident experts"]
    assert shared.begin == resident.begin == copied.end
    assert spans["main", "wait"].begin == max(shared.end, resident.end)
    assert spans["main", "copy from host"].begin == experts.end + 2.0
    picture = timeline.svg(list(spans.values()))
    assert picture.count("<rect") == len(spans) + 1 and "GPU, side stream" in picture


def test_the_library_tells_why_a_call_failed(library):
    with pytest.raises(CudaLibraryError, match="k=100 must be a multiple of 64"):
        library.call("int4_sizes", 1, 64, 100, 128, 1, 4, 90, None, None)


def test_a_step_whose_need_failed_is_skipped_and_the_others_run(tmp_path):
    fails = check.Step("first", [[sys.executable, "-c", "print('why'); raise SystemExit(3)"]], 10)
    behind = check.Step("second", [["true"]], 10, ("first",))
    other = check.Step("third", [[sys.executable, "-c", "print(1)"]], 10)
    late = check.Step("fourth", [["sleep", "20"]], 1.0)
    missing = check.Step("fifth", [["no-such-program"]], 10)
    outcomes = check.run_all([fails, behind, other, late, missing], tmp_path)
    assert [o.verdict for o in outcomes] == ["FAILED", "skipped", "ok", "FAILED", "FAILED"]
    assert outcomes[0].reason == "status 3: why" and outcomes[1].reason == "first FAILED"
    assert outcomes[3].reason == "out of time: 1 s" and "not here" in outcomes[4].reason
    assert "==== first: FAILED" in (tmp_path / "log.txt").read_text()


BROOD = """
import os, subprocess, sys
kept = subprocess.Popen(["sleep", "60"])
own = subprocess.Popen(["sleep", "60"], process_group=0)  # as ninja starts compilers
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
stays = subprocess.Popen([sys.executable, "-c", stubborn])
print(kept.pid, own.pid, stays.pid, flush=True)
if sys.argv[1] == "wait":
    kept.wait()
"""


@pytest.mark.parametrize("how", ["wait", "leave"])
def test_nothing_that_a_step_started_outlives_it(how):
    """Ended for its time, or having left children behind."""
    text, code = sessions.run([sys.executable, "-c", BROOD, how], 3, ROOT, dict(os.environ))
    assert code == (sessions.OUT_OF_TIME if how == "wait" else 0)
    pids = text.split()
    assert len(pids) == 3
    for pid in pids:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_ending_the_check_ends_its_step(tmp_path):
    """The steps' sessions do not get the signals of the terminal, or of whoever ends the check."""
    program = (
        "import sys; from pathlib import Path; from tests.gpu import check\n"
        "check.steps = lambda arch: [check.Step('one', [['sleep', '77']], 80)]\n"
        "sys.exit(check.main([]))"
    )
    started = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT,
                               env=os.environ | {"OUT": str(tmp_path)})  # fmt: skip
    children = Path(f"/proc/{started.pid}/task")
    step = ""
    until = time.monotonic() + 30
    while not step and time.monotonic() < until:
        for file in children.glob("*/children"):
            for pid in file.read_text().split():
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                step = pid if b"sleep\x0077" in line else step
        time.sleep(0.05)
    assert step
    started.terminate()
    assert started.wait(30) == 128 + 15
    assert not Path(f"/proc/{step}").exists()


def test_what_matters_most_keeps_its_time():
    long = check.Step("long", [["true"]], 300)
    sure = check.Step("sure", [["true"]], 100, kept=60)
    pair = [check.Step(f"pair{i}", [["true"]], 200, kept=100 + i, group="pair") for i in (0, 1)]
    assert check.granted(long, [sure], 570) == 300
    assert check.granted(long, [sure], 200) == 140
    assert check.granted(long, [sure, *pair], 300) == 300 - 60 - 101  # a group runs together
    assert check.granted(pair[0], [pair[1], sure], 250) == 190
    assert check.granted(sure, [], 30) == 30


def test_the_times_kept_fit_into_all_there_is():
    found = check.steps("90")
    sure = {step.group or step.name: step.kept for step in found if step.kept}
    machine = found[0].seconds
    assert sum(sure.values()) + machine <= check.TOTAL_SECONDS
    names = [step.name for step in found if step.kept]
    assert names == ["cuda-build", "cpu-build", "gpu-tests", "cuda-bench", "decode-step", "handoff",
                     "models"]  # fmt: skip
    assert all(step.kept <= step.seconds for step in found)
    # However long each takes: what is kept is there.
    left = check.TOTAL_SECONDS
    for batch in check.batches(found):
        later = found[found.index(batch[-1]) + 1 :]
        times = [check.granted(step, later, left) for step in batch]
        assert all(time >= step.kept for time, step in zip(times, batch, strict=True))
        left -= max(0.0, *times)


def test_what_time_ran_out_for_is_cut_and_said_so(tmp_path, monkeypatch, capsys):
    chosen = [check.Step("first", [["sleep", "20"]], 30),
              check.Step("second", [["true"]], 30, kept=1)]  # fmt: skip
    first, second = check.run_all(chosen, tmp_path, total=2.0)
    assert (first.verdict, second.verdict) == ("cut", "cut")
    assert first.reason == "no time left" == second.reason
    monkeypatch.setattr(check, "LEAST_SECONDS", 0.1)
    first, second = check.run_all(chosen, tmp_path, total=4.0)
    assert first.verdict == "cut" and re.fullmatch(r"[23] of 30 s were left", first.reason)
    assert second.verdict == "ok"
    outcomes = [check.Outcome("first", "cut"), check.Outcome("second", "ok")]
    monkeypatch.setattr(check, "steps", lambda arch: chosen)
    monkeypatch.setattr(check, "run_all", lambda *of: outcomes)
    monkeypatch.setenv("OUT", str(tmp_path))
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        assert check.main([]) == 0  # what had no time kept is no failure
        assert "cut for want of time: first; --only first runs them" in capsys.readouterr().out
        outcomes[1].verdict = "cut"
        assert check.main([]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_loaded_models_that_come_first_are_there():
    source = (ROOT / steps.CARD_TESTS).read_text()
    for name in steps.MODELS:
        assert f"def {name}(" in source, name


# What a machine with torch and transformers has of them, and what check.sh looks for or brings.
BARE = r"""
import importlib.metadata, re, sys
mapped = importlib.metadata.packages_distributions()
plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
wanted, seen = [plain(name) for name in sys.argv[1].split(",")], set()
while wanted:
    name = wanted.pop()
    if name in seen:
        continue
    seen.add(name)
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        continue
    wanted += [plain(re.match(r"[\w.-]+", n)[0]) for n in needs if "extra ==" not in n]

class Bare(importlib.metadata.DistributionFinder):
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        of = mapped.get(name.split(".")[0], [])
        if "ktransformers" in of:  # installed or not, this folder's
            of = []
        if of and not {plain(one) for one in of} & seen:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec), None)

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        for finder in self.finders:
            for one in getattr(finder, "find_distributions", lambda _: ())(context):
                if plain(one.metadata["Name"]) in seen:
                    yield one

sys.meta_path[:] = [Bare(list(sys.meta_path))]
import importlib
for name in sys.argv[2].split(","):
    importlib.import_module(name)
"""


def test_what_the_steps_import_is_looked_for():
    """Run with nothing but what their needs name, and what those need themselves."""
    for packages, modules in (
        (("numpy", "torch"), ["bench.cuda.__main__", "bench.cuda.experts", "bench.cuda.prompts",
                              "bench.cuda.handoff", "bench.cuda.attention", "bench.limits"]),
        (("numpy", "torch", "gguf", "transformers", "pytest"),
         ["bench.cpu", "tests.python.test_card"]),
        (("numpy", "gguf", "pytest"), ["tests.python.test_kernels"]),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", BARE, ",".join(packages), ",".join(modules)], cwd=ROOT,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_a_dry_run_has_a_line_for_each_thing_that_is_missing(monkeypatch):
    monkeypatch.setitem(check.NEEDS, "gguf", lambda: "no Python package gguf")
    monkeypatch.setitem(check.NEEDS, "nvcc", lambda: "no nvcc")
    monkeypatch.setitem(check.NEEDS, "pytest", lambda: "")
    monkeypatch.setattr(check, "fails_to_import", lambda name: f"Python package {name} fails: why")
    chosen = [check.Step("a", [["true"]], 1, ("gguf", "nvcc")),
              check.Step("b", [["true"]], 1, ("a", "gguf", "pytest"))]  # fmt: skip
    lines = check.missing(chosen)
    assert lines[0].startswith("no Python package gguf; tests/gpu/carry.sh brings it")
    assert lines[0].endswith("(without it no a, b)")
    assert lines[1:2] == ["no nvcc (without it no a)"]
    assert lines[2].startswith("Python package pytest fails: why; ") and len(lines) == 3


def test_what_can_be_brought_along_is():
    """Each need is the machine's own (a card, its compiler, torch), or in carry.sh."""
    carry = (ROOT / "tests/gpu/carry.sh").read_text()
    for name in needs.REMEDIES:
        assert name in needs.NEEDS and name in carry, name
    named = {need for step in check.steps("90") for need in step.needs}
    unknown = named - set(needs.NEEDS) - {step.name for step in check.steps("90")}
    assert not unknown


def test_figures_are_taken_once(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "ROOT", tmp_path)
    write = f"open({str(tmp_path / 'a.json')!r}, 'w').write('{{\"rows\": []}}')"
    step = check.Step("one", [[sys.executable, "-c", write]], 10, result="a.json")
    assert check.run(step, 10).figures == {"rows": []}
    assert check.run(check.Step("two", [["true"]], 10, result="a.json"), 10).figures == {}


def test_dry_run_lists_every_step_and_finds_no_problem():
    done = subprocess.run(
        ["bash", "tests/gpu/check.sh", "--dry-run"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for step in check.steps("90"):
        assert f"\n{step.name} " in "\n" + done.stdout
    assert "0 problems" in done.stdout


def test_a_dry_run_names_what_would_fail():
    wrong = [
        check.Step("a", [["python3", "-m", "bench.nothing"]], 1),
        check.Step("b", [["bash", "tests/gpu/nothing.sh"]], 1),
    ]
    assert check.problems(wrong) == ["a: no module bench.nothing",
                                     "b: tests/gpu/nothing.sh is not there"]  # fmt: skip


def test_the_stand_in_for_googletest(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    program = str(tmp_path / "self_test")
    sources = [f"tests/gpu/{name}.cpp" for name in ("gtest_self_test", "main")]
    built = subprocess.run(
        ["g++", "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-Itests/gpu", *sources,
         "-o", program], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 1 and "8 tests, 6 failed, 1 skipped" in done.stdout, done.stdout
    for word in ("first", "second", "third", "thrown", "throws no", "fourth", "near"):
        assert word in done.stdout, done.stdout
    assert "never said" not in done.stdout
    one = subprocess.run([program, "Nothing.OfThatName"], capture_output=True, text=True)
    assert one.returncode == 1  # no test of that name: nothing ran
    assert subprocess.run([program, "Good"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arch", "message"),
    [("", "no NVIDIA driver here"), ("61", "from 75 (Turing) on"), ("sm_90", "from 75")],
)
def test_make_cuda_says_what_is_missing(arch, message, tmp_path):
    for tool in ("bash", "dirname", "tr", "sort", "paste", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        ["scripts/cuda.sh", "no-such-venv"], cwd=ROOT, capture_output=True, text=True,
        env={"PATH": str(tmp_path), "CUDA_ARCH": arch},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_table_of_what_the_emulator_ran():
    signature = "void launch(const LaunchShape&) [with Kernel = kt::cuda::{}; Stream = void*]"
    lines = [
        (signature.format("Flash<kt::cuda::half_t, 64>"), 3, 12, 0.5),
        (signature.format("Flash<kt::cuda::half_t, 128>"), 1, 2, 0.25),
        (signature.format("{anonymous}::CopyKernel"), 2, 2, 1.5),
    ]
    text = "".join("\t".join(map(str, line)) + "\n" for line in [*lines, lines[0]])
    assert kernel_table.rows(text) == [("CopyKernel", 1, 2, 2, 1.5), ("Flash", 2, 7, 26, 1.25)]


def test_what_is_known_is_written_after_every_step(tmp_path, monkeypatch):
    """Also where a step was ended while it wrote its figures."""
    half = tmp_path / "half.json"
    half.write_text('{"rows": [')
    chosen = [check.Step("first", [["true"]], 5, result=str(half)),
              check.Step("second", [["false"]], 5)]  # fmt: skip
    seen, write = [], check.write_report
    monkeypatch.setattr(
        check, "write_report", lambda found, *more: seen.append(len(found)) or write(found, *more)
    )
    outcomes = check.run_all(chosen, tmp_path)
    assert [o.verdict for o in outcomes] == ["ok", "FAILED"] and seen == [1, 2]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [step["figures"] for step in report["steps"]] == [{}, {}] and not half.exists()
