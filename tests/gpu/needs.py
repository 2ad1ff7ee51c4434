"""What steps of check.py need of a machine. Each answers with why it is not there, or ""."""

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
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
    """Debian packages to .gpu/root; to .gpu/site the wheels of what is not here, or too old: what
    is here fits the rest that is. Nothing is installed."""
    if not CARRIED.is_dir():
        return
    for deb in CARRIED.glob("*.deb") if shutil.which("dpkg") else ():
        subprocess.run(["dpkg", "-x", str(deb), str(CARRIED / "root")], check=False)
    if (CARRIED / "site").exists():
        return
    wheels = {path.name.split("-")[0]: str(path) for path in CARRIED.glob("*.whl")}
    lacking = [path for name, path in wheels.items() if module(name, LEAST.get(name, "0"))()]
    if lacking:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
                        "--no-compile", "--target", str(CARRIED / "site"), *lacking],
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


LEAST = {"pybind11": "3.0", "pytest": "8.0", "torch": "2.11", "transformers": "5.17"}


def module(name: str, least: str = "0") -> Callable[[], str]:
    """A Python package that is installed, of at least a version. It is not imported: that takes
    seconds of torch and transformers."""

    def look() -> str:
        line = f"import importlib.metadata as m; print(m.version({name!r}))"
        version = said_by(sys.executable, "-c", line).strip()
        if not version:
            return f"no Python package {name}"
        numbers = [tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (version, least)]
        return "" if numbers[0] >= numbers[1] else f"{name} {version}, {least} is needed"

    return look


def fails_to_import(name: str) -> str:
    """Why a Python package that is there cannot be imported; "" where it can."""
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True,
                          errors="replace", check=False, env=carried_environment())  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [""]
    return f"Python package {name} fails: {said[0][:160]}" if done.returncode else ""


def gpu() -> str:
    return "" if "GPU 0" in said_by("nvidia-smi", "-L") else "no NVIDIA GPU answers"


def torch_cuda() -> str:
    line = "import torch; print(torch.cuda.is_available())"
    answer = said_by(sys.executable, "-c", line).strip()
    return "" if answer == "True" else "torch sees no GPU"


def yaml_cpp() -> str:
    """A program that uses it is compiled, linked and run: what was carried may be of a system whose
    C library is newer than this one's."""
    source = '#include <yaml-cpp/yaml.h>\nint main() { return YAML::Load("7").as<int>() - 7; }\n'
    environment = carried_environment()
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/yaml"
        try:
            built = subprocess.run(
                ["g++", "-std=c++20", "-O0", "-x", "c++", "-", "-o", program, "-lyaml-cpp"],
                input=source, capture_output=True, text=True, check=False, env=environment,
            )  # fmt: skip
        except OSError:
            return "no g++"
        if built.returncode == 0:
            ran = subprocess.run([program], capture_output=True, text=True, check=False,
                                 env=environment)  # fmt: skip
            said = (ran.stderr.splitlines() or [f"status {ran.returncode}"])[0]
            return "" if ran.returncode == 0 else f"yaml-cpp does not run: {said[:160]}"
    if not any(CARRIED.glob("*.deb")):
        return "no yaml-cpp"
    if not shutil.which("dpkg"):
        return "no yaml-cpp, and no dpkg that unpacks .gpu/*.deb"
    lines = [line for line in built.stderr.splitlines() if "error" in line or "ld:" in line]
    return f"yaml-cpp of .gpu does not serve: {(lines or [''])[0][:160]}"


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


OWN_YAML_CPP = "or install it: yaml-cpp-devel, yaml-cpp, libyaml-cpp-dev are its names"
CARRY = "tests/gpu/carry.sh brings it, run elsewhere"

# name: how it is looked for; looked for once where a step cannot change it.
NEEDS: dict[str, Callable[[], str]] = {
    "nvcc": program("nvcc"),
    "cmake": program("cmake"),
    "ninja": program("ninja"),
    "compute-sanitizer": program("compute-sanitizer"),
    "gpu": gpu,
    "torch-cuda": torch_cuda,
    "yaml-cpp": yaml_cpp,
    "pybind11": module("pybind11", LEAST["pybind11"]),
    "gguf": module("gguf"),
    "pytest": module("pytest", LEAST["pytest"]),
    "numpy": module("numpy"),
    "torch": module("torch", LEAST["torch"]),
    "transformers": module("transformers", LEAST["transformers"]),
    "python-headers": python_headers,
    "ram-110g": ram_110g,
}
NEEDS = {name: functools.cache(look) for name, look in NEEDS.items()} | {"amx": amx}

# What brings those that carry.sh can bring.
REMEDIES = {
    "yaml-cpp": f"{CARRY}, {OWN_YAML_CPP}",
    "pybind11": CARRY,
    "gguf": CARRY,
    "pytest": CARRY,
}
