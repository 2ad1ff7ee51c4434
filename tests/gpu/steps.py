"""The steps of tests/gpu/check.sh: what each runs, what it needs, how long it may take.

What matters most comes first. A step with `kept` is sure of that many seconds: what comes before it
gets less where its own limit would leave too little. The others have what is left then, and are cut
where that is nothing.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

CUDA_BUILD, CPU_BUILD = "build-gpu", "build-gpu-cpu"
LIBRARY = f"{CUDA_BUILD}/csrc/cuda/libkt_cuda.so"
TESTS = f"{CUDA_BUILD}/csrc/cuda/kt_gpu_tests"
DECODE = f"{CUDA_BUILD}/csrc/cuda/kt_gpu_decode"
TOTAL_SECONDS = 570.0
LEAST_SECONDS = 10.0  # less is not worth beginning with
THREADS = (16, 8, 4, 2, 1)

# Of tests/python/test_card.py, what says most of a card in the least time: every family, several
# sequences, long prompts with experts that come and are dequantised, sampling, int4.
MODELS = (
    "test_a_model_on_the_card_says_what_it_says_on_the_cpu",
    "test_sequences_come_share_pages_and_go",
    "test_long_prompts_bring_their_experts_to_the_card",
    "test_long_prompts_dequantise",
    "test_what_steps_take_of_ram_is_foretold",
    "test_generation_runs_in_the_core",
    "test_the_card_chooses_tokens_as_the_host_does",
    "test_linears_in_int4_say_what_their_codes_say",
    "test_experts_in_int4_say_what_their_codes_say",
)
CARD_TESTS = "tests/python/test_card.py"


@dataclass
class Step:
    """command: argv, or a list of argvs run one after another. group: steps of one run together."""

    name: str
    commands: list[list[str]]
    seconds: float  # it is stuck when it takes longer
    needs: tuple[str, ...] = ()
    kept: float = 0.0  # seconds that no earlier step takes from it
    group: str = ""
    result: str = ""  # a JSON file that the report takes in
    environment: dict[str, str] = field(default_factory=dict)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def pytest(*arguments: str) -> list[str]:
    return python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10", *arguments)


def bench_cuda(*parts: str) -> list[str]:
    return python("-m", "bench.cuda", "--only", ",".join(parts))


def granted(step: Step, later: Iterable[Step], left: float) -> float:
    """Seconds for a step: its limit, or what is left without what later steps are sure of. Steps of
    one group run together: of them the longest counts."""
    sure: dict[str, float] = {}
    for other in later:
        if not step.group or other.group != step.group:
            group = other.group or other.name
            sure[group] = max(sure.get(group, 0.0), other.kept)
    return min(step.seconds, left - sum(sure.values()))


def steps(arch: str) -> list[Step]:
    """Every step in order; what matters most comes first, in case time runs out."""
    cuda = ["cmake", "-S", ".", "-B", CUDA_BUILD, "-G", "Ninja", "-DKT_CUDA=ON",
            "-DKT_GPU_TESTS=ON", "-DKT_BUILD_PYTHON=OFF",
            f"-DCMAKE_CUDA_ARCHITECTURES={arch}"]  # fmt: skip
    cpu = ["cmake", "-S", ".", "-B", CPU_BUILD, "-G", "Ninja",
           f"-DPython_EXECUTABLE={sys.executable}"]  # fmt: skip
    cores = len(os.sched_getaffinity(0))  # two are left to the coordinator and the launching thread
    workers = str(max(1, cores - 2))
    bench = {"PYTHONUNBUFFERED": "1", "KT_CUDA_LIBRARY": LIBRARY}
    on_card = {"KT_TEST_CUDA_LIBRARY": LIBRARY}
    loaded = ("gpu", "cuda-build", "cpu-build", "torch", "gguf", "transformers", "pytest")
    found = [
        Step("machine", [["lscpu"], ["nvidia-smi"], ["nvcc", "--version"]], 20),
        Step("cuda-build", [cuda, ["cmake", "--build", CUDA_BUILD, "--", "--quiet"]], 300,
             ("nvcc", "cmake", "ninja"), kept=240, group="builds"),
        Step("cpu-build", [cpu, ["cmake", "--build", CPU_BUILD, "--target", "_core", "--",
                                 "--quiet"]], 300,
             ("cmake", "ninja", "yaml-cpp", "pybind11", "python-headers"), kept=240,
             group="builds"),
        Step("gpu-tests", [[TESTS]], 90, ("gpu", "cuda-build"), kept=45),
        Step("cuda-bench", [bench_cuda("int4", "gemv", "experts", "prompts", "mla")], 180,
             ("gpu", "numpy", "torch-cuda", "cuda-build"), kept=90,
             result="bench/results/cuda.json", environment=bench),
        Step("decode-step", [[DECODE, "--threads", workers, "--json",
                              "bench/results/cuda_decode.json"]], 100, ("gpu", "cuda-build"),
             kept=60, result="bench/results/cuda_decode.json"),
        Step("handoff", [bench_cuda("handoff")], 40,
             ("gpu", "numpy", "torch-cuda", "cuda-build"), kept=25,
             result="bench/results/cuda.json", environment=bench),
        Step("models", [pytest(*(f"{CARD_TESTS}::{name}" for name in MODELS))], 100, loaded,
             kept=60, environment=on_card),
        Step("models-rest", [pytest(CARD_TESTS, *(f"--deselect={CARD_TESTS}::{name}"
                                                  for name in MODELS))], 120, loaded,
             environment=on_card),
        Step("v3-shape", [[DECODE, "--layers", "61", "--threads", workers, "--json",
                           "bench/results/cuda_v3.json"]], 150, ("gpu", "cuda-build", "ram-110g"),
             result="bench/results/cuda_v3.json"),
        Step("amx-tests", [pytest("tests/python/test_kernels.py")], 120,
             ("cpu-build", "numpy", "gguf", "pytest", "amx")),
        Step("cpu-limits", [python("-m", "bench.limits", "--threads", "1,2,4,8,16")], 40,
             ("cpu-build", "numpy", "torch")),
        Step("cpu-model", [python("-m", "bench.cpu", "--make", "--models", "qwen3", "--layers",
                                  "6")], 60,
             ("cpu-build", "numpy", "torch", "gguf", "transformers")),
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
