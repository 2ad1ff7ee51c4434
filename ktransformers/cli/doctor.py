"""`ktransformers doctor`: what this machine offers, and what to do where something is missing.

Only the standard library is imported, and each item is looked at on its own, so that the command
also works where the installation is broken: that is when it is needed.
"""

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from ktransformers.optimize.system import (
    cpu_flags,
    cpu_quota,
    meminfo,
    memory_limit,
    node_memory,
    physical_cores,
    read,
    usable_cores,
)

GOOD, NOTE, BAD = "ok", "note", "BAD"

AVX2 = ("avx2", "fma", "f16c")
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
BF16 = (*AVX512, "avx512vbmi", "avx512_bf16")
ISA_FEATURES = {
    "amx": (*BF16, "amx_tile", "amx_int8"),
    "avx512bf16": BF16,
    "avx512": AVX512,
    "avxvnni": (*AVX2, "avx_vnni"),
    "avx2": AVX2,
    "scalar": (),
}


@dataclass
class Finding:
    item: str
    verdict: str  # GOOD, NOTE (works, could be better) or BAD (will not work)
    text: str
    todo: str = ""


def check_python() -> Finding:
    return Finding("python", GOOD, f"{platform.python_version()} at {sys.executable}")


def check_core() -> Finding:
    try:
        from ktransformers import _core
    except ImportError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(
            "core",
            BAD,
            f"ktransformers._core does not load: {reason}",
            "build it with: make dev_install",
        )
    return Finding("core", GOOD, str(_core.__file__))


def requirements() -> list[str]:
    """The package's requirements, as installed or, in a source tree, as pyproject.toml has them."""
    try:
        found = requires("ktransformers") or []
    except PackageNotFoundError:
        import tomllib

        project = Path(__file__).parents[2] / "pyproject.toml"
        found = tomllib.loads(read(str(project))).get("project", {}).get("dependencies", [])
    return [text for text in found if "extra ==" not in text]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def check_packages() -> list[Finding]:
    found = []
    for text in requirements():
        name = re.match(r"[\w.-]+", text)[0]
        try:
            have = version(name)
        except PackageNotFoundError:
            found.append(Finding(name, BAD, "not installed", f"pip install '{text}'"))
            continue
        least, below = re.search(r">=([\d.]+)", text), re.search(r"<([\d.]+)", text)
        fits = not (least and numbers(have) < numbers(least[1]))
        fits &= not (below and numbers(have) >= numbers(below[1]))
        todo = "" if fits else f"pip install '{text}'"
        found.append(Finding(name, GOOD if fits else BAD, have, todo))
    return found


def check_imports() -> Finding:
    """Installed is not yet working: a process of its own imports torch and transformers."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import torch, transformers"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "imports", NOTE, "torch and transformers took more than two minutes to import"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding("imports", BAD, reason, "mend or reinstall torch and transformers")
    return Finding("imports", GOOD, "torch and transformers load")


def check_isa() -> Finding:
    forced = os.environ.get("KT_CPU_ISA", "")
    try:
        from ktransformers import _core

        info = _core.cpu_info()
        usable = [i["name"] for i in info["isas"] if i["usable"] and not i["stands_for"]]
        name, choices = info["isa"], ", ".join(usable)
        return Finding(
            "instruction set",
            NOTE if name == "scalar" else GOOD,
            f"{name} (usable here: {choices})" + (" by KT_CPU_ISA" if forced else ""),
            "scalar kernels are the reference, not the speed" if name == "scalar" else "",
        )
    except ValueError as error:  # KT_CPU_ISA names what is not there
        return Finding("instruction set", BAD, str(error), "unset KT_CPU_ISA or name one of those")
    except (ImportError, AttributeError, KeyError):
        flags = cpu_flags()
        best = next(isa for isa, needs in ISA_FEATURES.items() if flags.issuperset(needs))
        verdict = GOOD if best != "scalar" else NOTE
        return Finding("instruction set", verdict, f"{best} (read from /proc/cpuinfo)")


def check_amx() -> Finding:
    if not {"amx_tile", "amx_int8", "amx_bf16"} <= cpu_flags():
        return Finding("AMX", GOOD, "this CPU has none; not needed")
    arch_prctl, request, tile_data = (
        158,
        0x1023,
        18,
    )  # x86-64: syscall, ARCH_REQ_XCOMP_PERM, XTILEDATA
    if ctypes.CDLL(None, use_errno=True).syscall(arch_prctl, request, tile_data) == 0:
        return Finding("AMX", GOOD, "present, and the kernel permits it")
    return Finding(
        "AMX",
        NOTE,
        "present, but the kernel refuses it",
        "needs Linux 5.16 or newer, no seccomp filter",
    )


def check_numa() -> Finding:
    nodes = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"))
    if len(nodes) < 2:
        return Finding("NUMA", GOOD, "one node")
    sizes = ", ".join(f"{node.name} {node_memory(node) / 2**30:.0f} GiB" for node in nodes)
    empty = [node.name for node in nodes if not node_memory(node)]
    if empty:
        return Finding("NUMA", NOTE, sizes, f"{', '.join(empty)} has no memory: populate its slots")
    return Finding("NUMA", GOOD, sizes)


def check_hugepages() -> Finding:
    mode = read("/sys/kernel/mm/transparent_hugepage/enabled")
    match = re.search(r"\[(\w+)\]", mode)
    if not match:
        return Finding("huge pages", NOTE, "the kernel offers no transparent huge pages")
    if match[1] == "never":
        return Finding(
            "huge pages",
            NOTE,
            "transparent huge pages: never",
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    return Finding("huge pages", GOOD, f"transparent huge pages: {match[1]}")


def check_cores() -> Finding:
    cpus = os.sched_getaffinity(0)
    total = os.cpu_count() or len(cpus)
    text = f"{usable_cores()} physical usable; affinity mask: {len(cpus)} of {total} logical CPUs"
    quota = cpu_quota()
    if quota is None:
        return Finding("cores", GOOD, text)
    text += f"; the cgroup grants {quota:g}"
    if quota < physical_cores(cpus):
        return Finding("cores", NOTE, text, "raise the container's CPU limit to use all cores")
    return Finding("cores", GOOD, text)


def check_memory() -> list[Finding]:
    info = meminfo()
    total, free = info.get("MemTotal", 0), info.get("MemAvailable", 0)
    text = f"{free / 2**30:.1f} GiB available of {total / 2**30:.1f} GiB"
    limit = memory_limit()
    todo, verdict = "", GOOD
    if limit is not None and limit < total:
        text += f"; the cgroup allows {limit / 2**30:.1f} GiB"
        verdict, todo = (
            NOTE,
            "a model must fit into the cgroup's limit; raise the container's if it is small",
        )
    found = [Finding("memory", verdict, text, todo)]
    swap, swap_free = info.get("SwapTotal", 0), info.get("SwapFree", 0)
    if swap - swap_free > total // 20:
        text = f"{(swap - swap_free) / 2**30:.1f} GiB of {swap / 2**30:.1f} GiB in use"
        found.append(
            Finding("swap", NOTE, text, "weights that are swapped out are slow: free memory first")
        )
    else:
        found.append(Finding("swap", GOOD, f"{swap / 2**30:.1f} GiB, unused" if swap else "none"))
    return found


def check_gpu() -> list[Finding]:
    from ktransformers.optimize.nvidia import cards, module_state, start_lines

    here = cards()
    lines = [line.partition(": ")[2] for line in start_lines(found=here)]
    if not lines:
        return [Finding("GPU", GOOD, "no NVIDIA driver; not needed")]
    if not here:
        return [Finding("GPU", NOTE, lines[0])]
    loads, state = module_state()
    text, _, todo = state.partition("; ")
    module = Finding("CUDA module", GOOD if loads else NOTE, text, todo)
    return [*(Finding("GPU", GOOD, line) for line in lines[:-1]), module]


CHECKS: list[Callable[[], Finding | list[Finding]]] = [
    check_python, check_core, check_packages, check_imports, check_isa, check_amx, check_cores,
    check_numa, check_hugepages, check_memory, check_gpu,
]  # fmt: skip


def examine() -> list[Finding]:
    """All findings. A check that itself fails becomes a finding."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            found = check()
        except Exception as error:  # a doctor that crashes helps nobody
            name = check.__name__.removeprefix("check_")
            found = Finding(name, NOTE, f"could not be looked at: {type(error).__name__}: {error}")
        findings += found if isinstance(found, list) else [found]
    return findings


def main() -> int:
    """Prints one line per item and, under it, what to do. 0 if nothing is BAD, else 1."""
    findings = examine()
    for finding in findings:
        print(f"{finding.verdict:<5} {finding.item:<16} {finding.text}")
        if finding.todo:
            print(f"{'':<22} -> {finding.todo}")
    bad = sum(finding.verdict == BAD for finding in findings)
    print(f"\n{bad} item(s) must be mended" if bad else "\nready")
    return 1 if bad else 0
