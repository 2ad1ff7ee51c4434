"""Runs inside .venv-peers: llama.cpp's logits of token windows, as .npy files.

A JSON job on standard input: {"model", "windows": [[ids]], "out": folder}. Exit status 3: its
Python binding is not installed.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main() -> int:
    task = json.load(sys.stdin)
    try:
        from llama_cpp import Llama
    except ImportError:
        return 3
    longest = max(map(len, task["windows"]))
    model = Llama(task["model"], n_ctx=longest, n_batch=longest, logits_all=True, verbose=False,
                  n_threads=task.get("threads"))  # fmt: skip
    for number, window in enumerate(task["windows"]):
        model.reset()
        model.eval(window)
        np.save(Path(task["out"]) / f"{number}.npy", np.array(model.scores[: len(window)]))
    print(len(task["windows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
