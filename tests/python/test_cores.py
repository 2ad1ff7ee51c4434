"""Fewer cores than threads, a CPU quota, a fork: nothing hangs and no bit changes."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from ktransformers import _core

ROOT = Path(__file__).parents[2]
CPUS = sorted(os.sched_getaffinity(0))

# A product of some size on each count of threads, many times over; prints what it saw.
WORK = """
import json, sys
import numpy as np
from ktransformers import _core
rng = np.random.default_rng(1)
w, x = rng.standard_normal((256, 256), np.float32), rng.standard_normal((40, 256), np.float32)
sums = []
for threads in (0, 1, 2, 4, 8):
    context = _core.Context(threads)
    op = _core.Linear(_core.Matrix(context, w, "f32", 256, 256, "w"))
    for _ in range(50):
        y = op.forward(context, x, np.zeros(40, np.uint8))
    sums.append(y.tobytes().hex()[:4096])
info = _core.cpu_info()
print(json.dumps([info["default_threads"], info["quota"], info["cpus"], len(set(sums))]))
"""


def run(before=None, timeout=120):
    """[default threads, quota, usable CPUs, different results] of WORK in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WORK], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, preexec_fn=before, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_core_and_many_threads():
    default, _, cpus, results = run(lambda: os.sched_setaffinity(0, CPUS[:1]))
    assert (default, cpus, results) == (1, 1, 1)


def test_threads_by_default_are_the_cores_the_process_may_use():
    default, quota, cpus, results = run()
    assert cpus == len(CPUS) and results == 1
    assert 1 <= default <= cpus and (quota == 0 or default <= quota)


@pytest.fixture
def cpu_group():
    """A new cgroup under this process's own; yields its folder and whether it is version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = Path("/sys/fs/cgroup", controllers)
        folder = mount / path.lstrip("/") / f"kt-test-{uuid.uuid4().hex}"
        try:
            (folder / "inner").mkdir(parents=True)
        except OSError:
            continue
        if (folder / ("cpu.cfs_quota_us" if controllers else "cpu.max")).exists():
            yield folder, not controllers
            (folder / "inner").rmdir()
            folder.rmdir()
            return
        (folder / "inner").rmdir()
        folder.rmdir()
    pytest.skip("no right to make a cgroup with a CPU limit here")


@pytest.mark.parametrize("percent, threads", [(50, 1), (100, 1), (150, 2)])
def test_a_quota_of_a_group_above_is_respected(cpu_group, percent, threads):
    folder, v2 = cpu_group
    if v2:
        (folder / "cpu.max").write_text(f"{percent * 1000} 100000")
    else:
        (folder / "cpu.cfs_quota_us").write_text(str(percent * 1000))

    def join():
        (folder / "inner" / "cgroup.procs").write_text(str(os.getpid()))

    default, quota, _, results = run(join)
    assert quota == threads and results == 1
    assert default == min(threads, _core.cpu_info()["default_threads"])


def test_a_forked_child_can_go_on():
    """Threads do not survive a fork: the child finds its pool empty and does the work itself."""
    code = WORK.replace(
        "info =",
        "import os, signal\nsignal.alarm(60)\nchild = os.fork()\n"
        "y = op.forward(context, x, np.zeros(40, np.uint8))\n"
        "sums.append(y.tobytes().hex()[:4096])\n"
        "if child == 0:\n    os._exit(len(set(sums)))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1\ninfo =",
    )
    assert code != WORK
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
