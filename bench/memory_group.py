"""A control group that limits memory, for measurements of what a process gets by with."""

import os
import uuid
from pathlib import Path


class NoGroups(Exception):
    """This process may not make control groups with a memory limit."""


def new_group(controller: str, v2_file: str, v1_file: str) -> tuple[Path, bool]:
    """An empty control group under this process's own that has the limit's file: its folder, and
    whether it is of version 2. Raises: NoGroups."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = Path("/sys/fs/cgroup", controllers) / path.lstrip("/")
        folder = folder / f"kt-bench-{uuid.uuid4().hex[:12]}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / (v1_file if controllers else v2_file)).exists():
            return folder, not controllers
        folder.rmdir()
    raise NoGroups(f"no right to make a control group with a {controller} limit here")


class MemoryGroup:
    """with MemoryGroup(bytes) as group: subprocess.run(..., preexec_fn=group.join)

    Swap is off inside. Removed at the end, when its processes are gone. Raises: NoGroups.
    """

    def __init__(self, limit: int):
        self.limit = limit

    def __enter__(self) -> "MemoryGroup":
        self.folder, self.is_v2 = new_group("memory", "memory.max", "memory.limit_in_bytes")
        self._limit()
        return self

    def _name(self, v2: str, v1: str) -> str:
        return v2 if self.is_v2 else v1

    def _limit(self) -> None:
        self._write(self._name("memory.max", "memory.limit_in_bytes"), str(self.limit))
        swap = "0" if self.is_v2 else str(self.limit)  # version 1 counts memory and swap together
        name = self._name("memory.swap.max", "memory.memsw.limit_in_bytes")
        if (self.folder / name).exists():
            self._write(name, swap)

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def join(self) -> None:
        """Moves the calling process in."""
        self._write("cgroup.procs", str(os.getpid()))

    @property
    def peak(self) -> int:
        """The most bytes that were in use, file pages included; never above the limit."""
        name = self._name("memory.peak", "memory.max_usage_in_bytes")
        return int((self.folder / name).read_text())

    def __exit__(self, *_) -> None:
        self.folder.rmdir()
