"""The asking side of bench.answering: an engine in a process of its own, kept while others work."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from typing import Any

from bench import peers
from bench.answering import MISSING
from bench.report import ROOT

TIMEOUT = 3600.0  # seconds for one answer: a peer may evaluate a prompt of 32768 tokens
OURS = {"ours": {}, "ours-avx2": {"KT_CPU_ISA": "avx2"}}  # {engine: what it adds to environment}


class EngineFailed(Exception):
    """The engine gave no answer; its name and its last words."""

    def __init__(self, engine: str, words: str):
        super().__init__(words)
        self.engine = engine


class Engine:
    """A process that answers. facts: what it said of itself when it was loaded.

    Raises: EngineFailed, here and in ask(); the process has ended then.
    """

    def __init__(
        self, name: str, command: list[str], job: dict, environment: dict | None = None,
        timeout: float = TIMEOUT,
    ):  # fmt: skip
        self.name, self.timeout, self.is_late = name, timeout, False
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            cwd=ROOT, env=os.environ | (environment or {}),
        )  # fmt: skip
        self.facts = self._answer_to(job)

    def ask(self, do: str, **arguments) -> Any:
        return self._answer_to({"do": do, **arguments})

    def _answer_to(self, line: dict) -> Any:
        late = threading.Timer(self.timeout, self._give_up)
        words = ""
        late.start()
        try:
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
            for said in self.process.stdout:
                match parsed(said):
                    case {"answer": value}:
                        return value
                    case {"failed": str(why)}:
                        words = why
        except BrokenPipeError:
            pass  # it has ended; what it said last follows
        except BaseException:  # an interrupt leaves an answer on its way: nothing more is asked
            self.process.kill()
            raise
        finally:
            late.cancel()
        status = self.process.wait()
        words = words or self._last_words() or f"ended with {status}"
        self.end()
        if self.is_late:
            raise EngineFailed(self.name, f"no answer within {self.timeout:.0f} s")
        if status == MISSING:
            raise EngineFailed(self.name, f"not installed: run `make peers` ({words})")
        raise EngineFailed(self.name, words)

    def _give_up(self) -> None:
        self.is_late = True
        self.process.kill()

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return lines[-1] if lines else ""

    def end(self) -> None:
        """Lets it go. May be called again."""
        if self.process.stdin.closed:
            return
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def parsed(line: str) -> Any:
    """What a line says; None where an engine printed it."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def started(engine: str, job: dict, ours: str, peer: str) -> Engine:
    """The engine of that name. ours, peer: modules of either side; a peer has its own Python.

    Raises: EngineFailed, saying so if it is not installed.
    """
    job = job | {"engine": engine}
    if engine in OURS:
        return Engine(engine, [sys.executable, "-m", ours], job, OURS[engine])
    if not peers.PYTHON.exists():
        raise EngineFailed(engine, "not installed: run `make peers`")
    return Engine(engine, [str(peers.PYTHON), "-m", peer], job)
