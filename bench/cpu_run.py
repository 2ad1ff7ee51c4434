"""Runs the engines of bench.cpu on one model: a process each, in alternating order."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench import limits, peers
from bench.report import ROOT

OURS, PEERS = ("ours", "ours-avx2"), ("llama.cpp", "xllamacpp")
ENGINES = (*OURS, *PEERS)
SIDE = ("ours-avx2", "xllamacpp")  # only the shortest prompt and the shortest context
TIMEOUT = 3600.0


@dataclass
class Job:
    """What is measured. prompts, contexts: lengths in tokens; decode: generated tokens timed;
    rows: sequences decoded together; rounds: times each engine is started."""

    prompts: list[int]
    contexts: list[int]
    decode: int = 48
    rows: list[int] = field(default_factory=list)
    repeats: int = 2
    rounds: int = 1
    threads: int = 0
    activations: str = "auto"
    details: bool = True  # phases and routing of our own engine


class EngineFailed(Exception):
    """The engine started and gave no result; its last words."""


def measure(
    path: Path, vocab: int, engines: list[str], job: Job, first_ours: bool, say: Callable
) -> dict:
    """{"limits": [before, after], "runs": {engine: [result, ...]}, "missing": {engine: why}}."""
    found: dict = {"limits": [limits.measure(job.threads)], "runs": {}, "missing": {}}
    say(limits.line(found["limits"][0]))
    for turn in range(job.rounds):
        order = engines if first_ours == (turn % 2 == 0) else engines[::-1]
        for engine in order:
            if engine in found["missing"] or (turn > 0 and engine in SIDE):
                continue
            task = task_for(path, vocab, engine, job, with_details=turn == 0)
            try:
                result = run_engine(engine, task)
            except (EngineFailed, subprocess.TimeoutExpired) as error:
                found["missing"][engine] = str(error)
                say(f"  {engine}: {error}")
                continue
            found["runs"].setdefault(engine, []).append(result)
            say("  " + summary(engine, result))
    found["limits"].append(limits.measure(job.threads))
    say(limits.line(found["limits"][1]))
    return found


def task_for(path: Path, vocab: int, engine: str, job: Job, with_details: bool) -> dict:
    task = asdict(job) | {"model": str(path), "engine": engine, "vocab": vocab}
    task["threads"] = job.threads or len(os.sched_getaffinity(0))
    task["details"] = job.details and with_details and engine == "ours"
    if engine in SIDE:
        task |= {"prompts": job.prompts[:1], "contexts": job.contexts[:1], "rows": []}
    if not task["details"]:
        task["rows"] = []
    return task


def run_engine(engine: str, task: dict) -> dict:
    """Raises: EngineFailed, saying so if it is not installed."""
    environment = dict(os.environ)
    if engine in OURS:
        command = [sys.executable, "-m", "bench.cpu_ours"]
        if engine == "ours-avx2":
            environment["KT_CPU_ISA"] = "avx2"
    elif not peers.PYTHON.exists():
        raise EngineFailed("not installed: run `make peers`")
    else:
        command = [str(peers.PYTHON), str(Path(__file__).with_name("cpu_peer.py"))]
    return last_line(command, task, environment)


def last_line(command: list[str], task: dict, environment: dict | None = None) -> dict:
    """The JSON that a process prints last when given a JSON task. Raises: EngineFailed."""
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, timeout=TIMEOUT,
        check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    if done.returncode == 3:
        raise EngineFailed("not installed: run `make peers`")
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise EngineFailed(words[0])
    return json.loads(done.stdout.splitlines()[-1])


def summary(engine: str, result: dict) -> str:
    prompts = ", ".join(f"{n}: {int(n) / min(t):.0f}" for n, t in result["prompt"].items())
    decode = ", ".join(f"{n}: {1 / median(t):.1f}" for n, t in result["decode"].items())
    return (
        f"{engine} ({result['engine']}): loaded in {result['load_seconds']:.1f} s; "
        f"tokens/s: prompt {prompts}; decode behind {decode}"
    )
