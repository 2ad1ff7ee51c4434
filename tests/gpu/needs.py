"""What steps of check.py need of a machine. Each answers with why it is not there, or ""."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / ".gpu"


def said_by(*command: str) -> str:
    """What a command prints; "" where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False,
                              cwd=ROOT, env=carried_environment())  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def unpack_carried() -> None:
    """Debian packages to .gpu/root, wheels to .gpu/site; nothing is installed."""
    if not CARRIED.is_dir():
        return
    for deb in CARRIED.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(deb), str(CARRIED / "root")], check=False)
    wheels = [str(wheel) for wheel in CARRIED.glob("*.whl")]
    if wheels and not (CARRIED / "site").exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
                        "--no-compile", "--target", str(CARRIED / "site"), *wheels],
                       check=False)  # fmt: skip


def carried_environment() -> dict[str, str]:
    """os.environ with what was unpacked in its paths."""
    environment = dict(os.environ)

    def add(name: str, value: Path, separator: str = ":") -> None:
        if value.exists():
            before = environment.get(name)
            environment[name] = str(value) + (separator + before if before else "")

    usr = CARRIED / "root" / "usr"
    add("PYTHONPATH", CARRIED / "site")
    add("CMAKE_PREFIX_PATH", usr)
    add("CPLUS_INCLUDE_PATH", usr / "include")
    for folder in usr.glob("lib/*-linux-gnu"):
        add("LD_LIBRARY_PATH", folder)
        add("LIBRARY_PATH", folder)
    environment.setdefault("KT_BENCH_MODELS", str(ROOT / "build-gpu-cpu" / "models"))
    return environment


@functools.cache
def cuda_arch() -> str:
    """90 for compute capability 9.0; that also where no card answers."""
    text = said_by("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = re.match(r"(\d+)\.(\d)", text)
    return found[1] + found[2] if found else "90"


def program(name: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"no {name}"


def module(name: str, least: str = "0") -> Callable[[], str]:
    """A Python package that can be imported, of at least a version."""

    def look() -> str:
        line = f"import {name}; print(getattr({name}, '__version__', '0'))"
        version = said_by(sys.executable, "-c", line).strip()
        if not version:
            missing = importlib.util.find_spec(name.split(".")[0]) is None
            return f"no Python package {name}" if missing else f"Python package {name} fails"
        numbers = [tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (version, least)]
        return "" if numbers[0] >= numbers[1] else f"{name} {version}, {least} is needed"

    return look


def gpu() -> str:
    return "" if "GPU 0" in said_by("nvidia-smi", "-L") else "no NVIDIA GPU answers"


def torch_cuda() -> str:
    line = "import torch; print(torch.cuda.is_available())"
    answer = said_by(sys.executable, "-c", line).strip()
    return "" if answer == "True" else "torch sees no GPU"


def yaml_cpp() -> str:
    try:
        done = subprocess.run(
            ["g++", "-std=c++20", "-E", "-x", "c++", "-"], input="#include <yaml-cpp/yaml.h>\n",
            capture_output=True, text=True, check=False, env=carried_environment(),
        )  # fmt: skip
    except OSError:
        return "no g++"
    return "" if done.returncode == 0 else "no yaml-cpp: run tests/gpu/carry.sh before, elsewhere"


def python_headers() -> str:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.exists() else f"no {header}: Python's headers are not installed"


def amx() -> str:
    """The unit, and kernels for it in what was built."""
    if "amx_tile" not in Path("/proc/cpuinfo").read_text():
        return "this CPU has no AMX"
    line = (
        "from ktransformers import _core; "
        "print([i['name'] for i in _core.cpu_info()['isas'] if i['usable']])"
    )
    return "" if "'amx'" in said_by(sys.executable, "-c", line) else "this build has no AMX kernels"


def ram_110g() -> str:
    """For 82 GB of experts twice read, and what builds them."""
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return "" if have >= 110 else f"{have:.0f} GB of RAM, 110 are needed"


NEEDS: dict[str, Callable[[], str]] = {
    "nvcc": program("nvcc"),
    "cmake": program("cmake"),
    "ninja": program("ninja"),
    "compute-sanitizer": program("compute-sanitizer"),
    "gpu": gpu,
    "torch-cuda": torch_cuda,
    "yaml-cpp": yaml_cpp,
    "pybind11": module("pybind11", "3.0"),
    "gguf": module("gguf"),
    "pytest": module("pytest"),
    "transformers": module("transformers", "5.17"),
    "amx": amx,
    "python-headers": python_headers,
    "ram-110g": ram_110g,
}
