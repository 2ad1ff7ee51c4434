"""Facts of this machine that bound a run: cores, quotas, memory. Standard library only."""

import os
import re
from pathlib import Path


def read(path: str) -> str:
    """The file's text, or nothing where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def cpu_flags() -> set[str]:
    """The features /proc/cpuinfo names."""
    match = re.search(r"^flags\s*:\s*(.*)$", read("/proc/cpuinfo"), re.M)
    return set(match[1].split()) if match else set()


def node_memory(node: Path) -> int:
    """Bytes of memory on a NUMA node, given its folder in /sys."""
    match = re.search(r"MemTotal:\s*(\d+) kB", read(str(node / "meminfo")))
    return int(match[1]) * 1024 if match else 0


def cgroup_files(name_v2: str, name_v1: str) -> list[str]:
    """Contents of a limit file for this process's cgroup and those above it, v2 then v1."""
    lines = [line.split(":", 2) for line in read("/proc/self/cgroup").splitlines()]
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            mount, name = "/sys/fs/cgroup", name_v2
        elif name_v1.split(".")[0] in controllers.split(","):
            mount, name = f"/sys/fs/cgroup/{controllers}", name_v1
            if not os.path.isdir(mount):
                mount = f"/sys/fs/cgroup/{name_v1.split('.')[0]}"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            if text := read("/".join([mount, *parts[:depth], name])):
                found.append(text)
    return found


def cpu_quota() -> float | None:
    """CPUs the cgroup grants, or None where there is no limit."""
    quotas = []
    for text in cgroup_files("cpu.max", "cpu.cfs_quota_us"):
        words = text.split()
        if words[0] in ("max", "-1"):
            continue
        if len(words) == 2:
            quotas.append(int(words[0]) / int(words[1]))
        else:
            periods = cgroup_files("cpu.max", "cpu.cfs_period_us")
            quotas.append(int(words[0]) / int(periods[0] if periods else 100000))
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Bytes the cgroup grants, or None where there is no limit."""
    limits = [
        int(text)
        for text in cgroup_files("memory.max", "memory.limit_in_bytes")
        if text.isdigit() and int(text) < 1 << 60
    ]
    return min(limits, default=None)


def available_memory() -> int:
    """Bytes this process may still take: what is free or only cached, within the cgroup's limit."""
    available = meminfo().get("MemAvailable", 0)
    limit = memory_limit()
    return available if limit is None else min(available, limit)


def physical_cores(cpus: set[int]) -> int:
    """How many physical cores these logical CPUs are on."""
    base = "/sys/devices/system/cpu/cpu"
    siblings = {read(f"{base}{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return len(siblings)


def usable_cores() -> int:
    """Physical cores this process may use: affinity mask and cgroup quota respected; at least 1."""
    cores = physical_cores(os.sched_getaffinity(0))
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, round(quota + 0.49)))


def meminfo() -> dict[str, int]:
    """Bytes by name, of /proc/meminfo."""
    return {
        match[1]: int(match[2]) * 1024
        for match in re.finditer(r"^(\w+):\s*(\d+) kB$", read("/proc/meminfo"), re.M)
    }


def own_memory() -> int:
    """Bytes this process holds that are no file's pages."""
    match = re.search(r"RssAnon:\s*(\d+) kB", read("/proc/self/status"))
    return int(match[1]) * 1024 if match else 0
