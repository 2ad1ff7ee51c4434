"""Other engines: they live in .venv-peers (`make peers`) and run in a process of their own."""

import json
import subprocess
from pathlib import Path

from bench.answering import MISSING
from bench.report import ROOT

PYTHON = ROOT / ".venv-peers" / "bin" / "python"


def llama_cpp_greedy(model: Path, prompts: list[list[int]], count: int) -> list[list[int]] | None:
    """llama.cpp's greedy continuation of each prompt (ids); None where it is not installed."""
    task = {"model": str(model), "prompts": prompts, "count": count}
    return answer_of("peer_llama_cpp.py", task)


def answer_of(script: str, task: dict):
    """What a script beside this one answers on its last line; None where its engine is not
    installed. Raises: RuntimeError with its last words."""
    if not PYTHON.exists():
        return None
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name(script))],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    if done.returncode == MISSING:
        return None
    if done.returncode != 0:
        raise RuntimeError(f"{script} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])
