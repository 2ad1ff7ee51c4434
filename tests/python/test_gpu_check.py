"""The GPU benchmarks and their script, without a GPU: the same code on emulated kernels, and the
script's own decisions. What is wrong here would cost minutes on a borrowed machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cuda import __main__ as bench_cuda
from bench.cuda import handoff, timeline
from ktransformers.cuda_library import CudaLibrary, CudaLibraryError
from tests.gpu import check
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
    assert outcomes[3].reason == "out of time" and "not here" in outcomes[4].reason
    assert "==== first: FAILED" in (tmp_path / "log.txt").read_text()


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
