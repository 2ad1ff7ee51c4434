"""The rooms of the sources: who may import whom, and what only one room may touch.

Reads text only. Each rule is also shown a planted violation: a checker which sees nothing fails.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A room may include what stands in its list, and itself. Order: from the bottom up.
CPP_ROOMS = {
    "base": [],
    "quant": ["base"],
    "gguf": ["quant", "base"],
    "rules": ["base"],
    "cpu/kernels": ["cpu", "quant", "base"],
    "cpu/pool": ["cpu", "base"],
    "cpu/ops": ["cpu/pool", "cpu/kernels", "cpu", "quant", "base"],
    "cpu": ["cpu/kernels", "quant", "base"],
    "cuda": ["quant", "base"],
    # Of cuda only the C types of a step (cuda/api_step.h): the core does not link the library.
    "program": ["cuda", "cpu/ops", "cpu/pool", "cpu/kernels", "cpu", "quant", "base"],
    "bind": "program cuda cpu/ops cpu/pool cpu/kernels cpu rules gguf quant base".split(),
}

# Threads, affinity, NUMA, huge pages, file mapping, waiting: for base/os.h and base/os_* only.
OS_HEADERS = {
    "thread", "mutex", "condition_variable", "future", "semaphore", "barrier", "latch",
    "pthread.h", "sched.h", "sys/mman.h", "sys/syscall.h", "sys/prctl.h", "linux/futex.h",
    "numa.h", "numaif.h", "dlfcn.h", "fcntl.h", "unistd.h", "sys/stat.h",
}  # fmt: skip
OS_CALLS = re.compile(
    r"\b(mmap|munmap|madvise|mbind|set_mempolicy|sched_setaffinity|sched_getaffinity|dlopen|syscall"
    r"|pthread_\w+|std::j?thread|std::mutex|std::condition_variable)\s*[({]"
)
# What kernels, compiled once per instruction set, may include from the system: nothing that emits
# code which could be merged with another object's copy of it.
KERNEL_HEADERS = {
    "cfloat", "climits", "cmath", "cstddef", "cstdint", "cstring", "immintrin.h", "type_traits",
    "float.h", "limits.h", "math.h", "stddef.h", "stdint.h", "string.h",
}  # fmt: skip

# A Python package may import those with a smaller rank, and itself.
PYTHON_RANKS = {
    "errors": 0, "_core": 0, "cuda_library": 0,
    "checkpoint": 1, "hub": 1,
    "models": 2,
    "operators": 3,
    "optimize": 4,
    "runtime": 5,
    "server": 6, "cli": 6, "__main__": 6, "local_chat": 6, "util": 6,
}  # fmt: skip
TOP = {"__main__", "server", "cli", "local_chat", "util"}  # these may use one another
# Upstream's address of a function that goes the whole way; nothing of ours calls it.
AT_THE_TOP = {"ktransformers.optimize.optimize"}


def cpp_room(path: str) -> str:
    parts = path.split("/")
    nested = "/".join(parts[:2])
    return nested if len(parts) > 2 and nested in CPP_ROOMS else parts[0]


def strip_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r'"(?:\\.|[^"\\\n])*"|//[^\n]*', lambda m: m[0] if m[0][0] == '"' else "", text)


def cpp_violations(path: str, text: str) -> list[str]:
    """What is wrong with one file of csrc/; `path` is relative to csrc."""
    room = cpp_room(path)
    if room not in CPP_ROOMS:
        return [f"{path}: no room of that name; rooms: {', '.join(CPP_ROOMS)}"]
    is_os = room == "base" and Path(path).stem.split("_")[0] == "os"
    found = []
    for number, line in enumerate(strip_comments(text).splitlines(), 1):
        place = f"{path}:{number}"
        if match := re.match(r'\s*#\s*include\s+"([^"]+)"', line):
            target = cpp_room(match[1]) if "/" in match[1] else room
            if target != room and target not in CPP_ROOMS[room]:
                found.append(f"{place}: {room} must not include {match[1]}")
        elif match := re.match(r"\s*#\s*include\s+<([^>]+)>", line):
            header = match[1]
            if re.match(r"(torch|ATen|c10|caffe2)/", header):
                found.append(f"{place}: the core knows no torch, here <{header}>")
            if header.startswith(("pybind11/", "Python.h")) and room != "bind":
                found.append(f"{place}: only bind/ knows Python, here <{header}>")
            if header.startswith("yaml-cpp/") and room != "rules":
                found.append(f"{place}: only rules/ reads YAML, here <{header}>")
            if header in OS_HEADERS and not is_os:
                found.append(f"{place}: <{header}> belongs in base/os_*")
            if room == "cpu/kernels" and header not in KERNEL_HEADERS:
                found.append(f"{place}: kernels must not include <{header}>")
        elif (match := OS_CALLS.search(line)) and not is_os:
            found.append(f"{place}: {match[1]} belongs in base/os_*")
    return found


def python_room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ktransformers" and len(parts) > 1 else None


def python_violations(path: str, text: str) -> list[str]:
    """What is wrong with one Python file; `path` is relative to the repository."""
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    room = "util" if module in AT_THE_TOP else python_room(module)
    if room is None:
        return []
    if room not in PYTHON_RANKS:
        return [f"{path}: no room of that name; rooms: {', '.join(PYTHON_RANKS)}"]
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            origin = f"{base}.{node.module or ''}".strip(".") if node.level else node.module
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            target = python_room(name)
            if target is None or target == room or target not in PYTHON_RANKS:
                continue
            if room in TOP and target in TOP:
                continue
            if PYTHON_RANKS[target] >= PYTHON_RANKS[room]:
                found.append(f"{path}:{node.lineno}: {room} must not import {name}")
    return found


def sources(folder: str, *suffixes: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes)


def test_cpp_rooms():
    found, files = [], sources("csrc", ".h", ".cpp", ".cu")
    assert len(files) > 5
    for path in files:
        found += cpp_violations(str(path.relative_to(ROOT / "csrc")), path.read_text())
    assert not found, "\n".join(found)


def test_python_rooms():
    found, files = [], sources("ktransformers", ".py")
    assert len(files) > 2
    for path in files:
        found += python_violations(str(path.relative_to(ROOT)), path.read_text())
    assert not found, "\n".join(found)


def test_cmake_finds_no_torch():
    for path in [ROOT / "CMakeLists.txt", *sources("cmake", ".cmake")]:
        assert not re.search(r"find_package\(\s*torch", path.read_text(), re.I), path


@pytest.mark.parametrize(
    "path, line, word",
    [
        ("quant/q4_1.h", '#include "gguf/reader.h"', "must not include"),
        ("base/half.h", '#include "quant/q4_1.h"', "must not include"),
        ("cpu/kernels/gemv.cpp", '#include "cpu/ops/linear.h"', "must not include"),
        ("cpu/kernels/gemv.cpp", "#include <vector>", "kernels must not"),
        ("cpu/ops/linear.cpp", "#include <thread>", "base/os_"),
        ("gguf/reader.cpp", "  void* p = mmap(nullptr, n);", "base/os_"),
        ("program/program.cpp", "#include <torch/extension.h>", "no torch"),
        ("program/program.cpp", "#include <pybind11/pybind11.h>", "only bind/"),
        ("gguf/reader.cpp", "#include <yaml-cpp/yaml.h>", "only rules/"),
        ("attic/old.cpp", "", "no room"),
    ],
)
def test_a_planted_cpp_violation_is_seen(path, line, word):
    assert any(word in message for message in cpp_violations(path, line + "\n"))


def test_what_is_allowed_in_cpp():
    assert not cpp_violations("base/os_linux.cpp", "#include <sys/mman.h>\nauto p = mmap(0, n);\n")
    assert not cpp_violations("gguf/reader.cpp", "// calls mmap(2) through base/os_file.h\n")
    assert not cpp_violations("bind/module.cpp", '#include "program/x.h"\n#include "cpu/ops/y.h"\n')


@pytest.mark.parametrize(
    "path, line",
    [
        ("ktransformers/checkpoint/gguf.py", "from ktransformers.runtime import session"),
        ("ktransformers/checkpoint/gguf.py", "from ..models.registry import family_for"),
        ("ktransformers/models/llama.py", "def f():\n    import ktransformers.optimize.rules"),
        ("ktransformers/operators/linear.py", "from ktransformers import cli"),
    ],
)
def test_a_planted_python_violation_is_seen(path, line):
    assert python_violations(path, line + "\n")


LIGHT = ("local_chat", "optimize/rules", "optimize/plan")


def torch_free_modules() -> list[str]:
    paths = [ROOT / "ktransformers/__init__.py", ROOT / "ktransformers/errors.py"]
    paths += sources("ktransformers/checkpoint", ".py") + sources("ktransformers/cli", ".py")
    paths += [ROOT / f"ktransformers/{p}.py" for p in LIGHT]
    names = [str(p.relative_to(ROOT).with_suffix("")) for p in paths if p.exists()]
    return [name.replace("/", ".").removesuffix(".__init__") for name in names]


def test_front_door_imports_neither_torch_nor_transformers():
    code = (
        "import importlib, sys\n"
        f"for name in {torch_free_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    for heavy in ('torch', 'transformers'):\n"
        "        assert heavy not in sys.modules, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
