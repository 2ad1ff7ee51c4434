"""The console command: what it runs, what it refuses, what doctor says of machines of all kinds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktransformers import __version__
from ktransformers.cli import doctor
from ktransformers.optimize import system as machine
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]


def ktransformers(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ktransformers", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "mini.gguf"
    write(miniature("mixtral", types="Q8_0"), path)
    return str(path)


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys\nfrom ktransformers.cli.main import main\n"
        "status = main(['--help'])\n"
        "sys.exit(status or bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0, done.stderr
    for command in ("chat", "run", "plan", "inspect", "doctor", "version"):
        assert f" {command} " in done.stdout
    # Time of the processor, so that other work on the machine does not count.
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 0.5


def test_no_words_show_the_help():
    assert "inspect" in ktransformers().stdout


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version(word):
    done = ktransformers(word)
    assert (done.returncode, done.stdout) == (0, f"ktransformers {__version__}\n")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--port", "10002"], "--gguf_path is missing"),
        (["--gguf_path", "/nowhere/x"], "/nowhere/x: no such file or folder"),
        (["sing"], "No such command 'sing'"),
        (["inspect"], "Missing argument"),
        (["inspect", "/nowhere/x.gguf"], "/nowhere/x.gguf: no such file or folder"),
        (["inspect", "README.md"], "is not a GGUF file"),
        (["doctor", "--quick"], "No such option: --quick"),
        (["chat", "--banana"], "unknown flag --banana"),
        (["run", "/nowhere/x.gguf", "hello"], "/nowhere/x.gguf: no such file or folder"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(words, message):
    done = ktransformers(*words)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


def test_inspect(model):
    out = ktransformers("inspect", model, "--tensors").stdout
    assert "architecture: llama" in out
    assert 'general.name = "miniature' in out
    assert "token_embd.weight" in out and "q8_0" in out
    types = out[out.index("types:") :].splitlines()[1:]
    counts = [int(line.split()[1]) for line in types]
    assert sum(counts[:-1]) == counts[-1]

    document = json.loads(ktransformers("inspect", model, "--json").stdout)
    assert len(document["tensors"]) == counts[-1]
    assert document["metadata"]["general.architecture"] == "llama"


# ---- doctor ----


def test_doctor_on_this_machine():
    done = ktransformers("doctor")
    assert done.returncode == 0, done.stdout
    for item in ("python", "core", "torch", "instruction set", "cores", "memory", "huge pages"):
        assert item in done.stdout
    assert done.stdout.endswith("ready\n")


def test_doctor_works_where_nothing_else_does(tmp_path):
    """Only the standard library and a package without its core: what a failed install leaves."""
    package = tmp_path / "ktransformers"
    (package / "cli").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "cli/__init__.py", "cli/main.py", "cli/doctor.py"):
        (package / name).write_text((ROOT / "ktransformers" / name).read_text())
    (package / "optimize").mkdir()
    (package / "optimize/__init__.py").write_text("")
    (package / "optimize/system.py").write_text(
        (ROOT / "ktransformers/optimize/system.py").read_text()
    )
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys\nsys.path.insert(0, sys.argv[1])\n"
         "from ktransformers.cli.main import main\nsys.exit(main(['doctor']))", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BAD   core" in done.stdout and "make dev_install" in done.stdout
    assert "BAD   torch" in done.stdout and "pip install 'torch>=" in done.stdout
    assert "must be mended" in done.stdout


def test_doctor_names_an_unusable_instruction_set():
    done = ktransformers("doctor", KT_CPU_ISA="sse9")
    assert done.returncode == 1
    assert "sse9" in done.stdout and "unset KT_CPU_ISA" in done.stdout


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def check_moon():
        raise RuntimeError("clouds")

    monkeypatch.setattr(doctor, "CHECKS", [check_moon])
    (found,) = doctor.examine()
    assert found.item == "moon" and "RuntimeError: clouds" in found.text


@pytest.mark.parametrize(
    "have, verdict",
    [("2.13.0+cpu", "ok"), ("2.11", "ok"), ("2.9.1", "BAD"), ("10.0", "ok")],
)
def test_versions_are_compared_as_numbers(monkeypatch, have, verdict):
    monkeypatch.setattr(doctor, "requirements", lambda: ["torch>=2.11"])
    monkeypatch.setattr(doctor, "version", lambda name: have)
    assert [found.verdict for found in doctor.check_packages()] == [verdict]


@pytest.mark.parametrize(
    "files, quota",
    [
        ({"cpu.max": ["max 100000"]}, None),
        ({"cpu.max": ["150000 100000", "max 100000"]}, 1.5),
        ({"cpu.max": ["400000 100000", "200000 100000"]}, 2.0),  # the tightest on the way up
        ({"cpu.max": ["-1"]}, None),
        ({"cpu.max": []}, None),
    ],
)
def test_cgroup_quota(monkeypatch, files, quota):
    monkeypatch.setattr(machine, "cgroup_files", lambda v2, v1: files[v2])
    assert machine.cpu_quota() == quota


def test_a_quota_below_the_cores_is_noted(monkeypatch):
    monkeypatch.setattr(machine, "cgroup_files", lambda v2, v1: ["50000 100000"])
    monkeypatch.setattr(machine, "physical_cores", lambda cpus: 4)
    monkeypatch.setattr(doctor, "physical_cores", lambda cpus: 4)
    found = doctor.check_cores()
    assert found.verdict == "note" and "the cgroup grants 0.5" in found.text
    assert machine.usable_cores() == 1


def test_cgroup_files_of_both_versions(monkeypatch):
    tree = {
        "/proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n0::/user.slice/x",
        "/sys/fs/cgroup/user.slice/x/cpu.max": "100000 100000",
        "/sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "-1",
        "/sys/fs/cgroup/cpu.max": "max 100000",
    }
    monkeypatch.setattr(machine, "read", lambda path: tree.get(path, ""))
    monkeypatch.setattr(machine.os.path, "isdir", lambda path: False)
    found = machine.cgroup_files("cpu.max", "cpu.cfs_quota_us")
    assert sorted(found) == ["-1", "100000 100000", "max 100000"]


def test_a_missing_package_is_one_line(model, tmp_path):
    """Without torch (hidden here by a package of that name that is not importable) no traceback."""
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError('No module named torch', name='torch')"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ktransformers", "chat", "--gguf_path", model],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, input="",
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "the Python package torch is not installed" in done.stderr
    assert "Traceback" not in done.stderr
