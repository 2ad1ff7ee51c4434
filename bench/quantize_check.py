"""Files that `ktransformers quantize` writes, run by us and by llama.cpp, against fp32.

    python -m bench.quantize_check [--tokens 1024] [--only smollm2]

SmolLM2 and the small DeepSeek model are written in every preset. Each file is run on a text by our
engine as it comes, by llama.cpp, and by transformers in fp32 on the weights that the gguf package
reads from it. Limits: KL from llama.cpp to us at most 0.005 nats; ours to fp32 not above
llama.cpp's to fp32. Figures go to bench/results/quantize_check.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench import report
from bench.peers import PYTHON

KINDS = ("Q4_K_M", "Q6_K", "Q8_0", "IQ4_XS")
WINDOW = 256
MAX_KL = 0.005
TEXT = report.ROOT / "tests" / "data" / "tinyshakespeare_200k.txt"
HELD_OUT = 111_539  # characters at its end that the small model was not trained on
COLUMNS = "model file bits/weight fp32>ours fp32>llama.cpp llama.cpp>ours largest verdict".split()


def models() -> dict:
    """{name: (file, the family as the reference wants it)}"""
    from tests.support import smollm2, tiny_deepseek
    from tests.support.reference import SMOLLM2

    return {
        "smollm2": (smollm2.dense_path(), SMOLLM2),
        "tiny-deepseek": (tiny_deepseek.MODEL, tiny_deepseek.FAMILY),
    }


def llama_cpp_logits(model: Path, windows: list[list[int]], folder: Path) -> list[np.ndarray]:
    """Raises RuntimeError with what went wrong."""
    task = {"model": str(model), "windows": windows, "out": str(folder)}
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("peer_logits.py"))], input=json.dumps(task),
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RuntimeError(f"llama.cpp: {words[0]}")
    return [np.load(folder / f"{n}.npy") for n in range(len(windows))]


def compare_file(path: Path, family, windows: list[list[int]], folder: Path) -> dict:
    """Mean KL in nats over the windows between the three, and the largest from llama.cpp to us."""
    from ktransformers.util.measure import kl
    from tests.support import ours
    from tests.support.reference import Reference

    theirs = llama_cpp_logits(path, windows, folder)
    model = ours.load(path, "auto", lowered=True)
    mine = [ours.logits(model, window) for window in windows]
    reference = Reference.load(path, family)
    exact = [reference.logits(window) for window in windows]

    def mean(a: list, b: list) -> np.ndarray:
        return np.concatenate([kl(x, y) for x, y in zip(a, b, strict=True)])

    between = mean(theirs, mine)
    return {
        "fp32>ours": float(mean(exact, mine).mean()),
        "fp32>llama.cpp": float(mean(exact, theirs).mean()),
        "llama.cpp>ours": float(between.mean()),
        "largest": float(between.max()),
    }


def check(name: str, source: Path, family, tokens: int, folder: Path) -> list[dict]:
    from ktransformers import AutoTokenizer
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.checkpoint.presets import choose_types, preset
    from ktransformers.checkpoint.quantize import quantize_model

    text = TEXT.read_text()[-HELD_OUT:]
    ids = AutoTokenizer.from_pretrained(str(source))(text, add_special_tokens=False, verbose=False)
    ids = ids["input_ids"][:tokens]
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    rows, model = [], open_model(source)
    for kind in KINDS:
        path = folder / f"{name}-{kind}.gguf"
        types = choose_types(model, preset(kind), ())
        quantize_model(model, path, types, preset(kind).file_type)
        row = {"model": name, "file": kind, "bits/weight": bits(path)}
        row |= compare_file(path, family, windows, folder)
        good = row["llama.cpp>ours"] <= MAX_KL and row["fp32>ours"] <= row["fp32>llama.cpp"]
        rows.append(row | {"verdict": "ok" if good else "FAIL"})
        path.unlink()
    return rows


def bits(path: Path) -> float:
    from ktransformers.checkpoint.gguf import open_model

    infos = [info for info in open_model(path).tensors.values() if len(info.shape) > 1]
    return 8 * sum(i.nbytes for i in infos) / sum(int(np.prod(i.shape)) for i in infos)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quantize_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--only", choices=("smollm2", "tiny-deepseek"))
    options = parser.parse_args(argv)
    if not PYTHON.exists():
        print("error: llama.cpp is not installed: run `make peers`", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, family) in models().items():
            if options.only in (None, name):
                rows += check(name, source, family, options.tokens, Path(folder))
                cells = [[row[column] for column in COLUMNS] for row in rows]
                print(report.table(COLUMNS, cells), flush=True)
    report.write_json("quantize_check", {"rows": rows, "tokens": options.tokens})
    return 1 if any(row["verdict"] == "FAIL" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
