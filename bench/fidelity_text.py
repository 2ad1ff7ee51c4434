"""SmolLM2 on a real text, as one prompt and token by token, beside the emulated rounding."""

import sys
import tempfile
import time
from pathlib import Path

from bench.report import ROOT

TITLE = """SmolLM2-135M-Instruct Q4_1 in windows of 1,024 tokens, against transformers fp32.
Limits: f32 KL 1e-8; exact and token by token KL 2e-6; a prompt by default KL 0.0010, top-1 0.975,
KL within 15 % of the emulation; sliced and dense logits within 1e-3 of one another in f32."""
COLUMNS = "model way activations read tokens KL max_KL NMSE top-1 verdict".split()
WINDOW = 1024
HELD_TEXT = ROOT / "tests" / "data" / "tinyshakespeare_head.txt"
WHOLE_TEXT = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"

# model, way, activations, read, windows (of four: the reference arithmetic is slow)
RUNS = [
    ("dense", "lowered", "f32", "prompt", 1),
    ("dense", "modules", "f32", "prompt", 1),
    ("sliced", "lowered", "f32", "prompt", 1),
    ("sliced", "modules", "f32", "prompt", 1),
    ("dense", "lowered", "exact", "prompt", 4),
    ("dense", "lowered", "auto", "prompt", 4),
    ("dense", "modules", "auto", "prompt", 1),
    ("sliced", "lowered", "auto", "prompt", 4),
    ("dense", "lowered", "auto", "token by token", 4),
    ("dense", "emulated", "auto", "prompt", 4),
    ("dense", "emulated", "exact", "prompt", 1),
]
LIMITS = {
    ("f32", "prompt"): 1e-8,
    ("exact", "prompt"): 2e-6,
    ("auto", "token by token"): 2e-6,
    ("auto", "prompt"): 1.0e-3,
}


def read_ids(text: Path | None, model: Path, count: int) -> list[int]:
    """The first `count` tokens of the text: the whole one where it lies beside the sources."""
    from ktransformers import AutoTokenizer

    path = text or (WHOLE_TEXT if WHOLE_TEXT.is_file() else HELD_TEXT)
    content = path.read_text(encoding="utf-8")[: count * 8]
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    ids = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < count:
        raise ValueError(f"{path} has {len(ids)} tokens, {count} are needed")
    return list(ids[:count])


def compare_text(text: Path | None, quick: bool):
    from bench.emulation import emulated
    from bench.fidelity import Outcome
    from tests.support import ours, smollm2
    from tests.support.compare import Tally
    from tests.support.reference import SMOLLM2, Reference

    dense = smollm2.dense_path()
    windows = 1 if quick else 4
    ids = read_ids(text, dense, windows * WINDOW)
    reference = Reference.load(dense, SMOLLM2)
    tallies = {run: Tally() for run in RUNS}
    first_f32: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {"dense": dense, "sliced": smollm2.sliced_path(Path(folder))}
        models: dict[tuple, object] = {}
        for index in range(windows):
            window = ids[index * WINDOW : (index + 1) * WINDOW]
            expected = reference.logits(window)
            for run in RUNS:
                model, way, activations, read, wanted = run
                if index >= wanted:
                    continue
                start = time.monotonic()
                if way == "emulated":
                    with emulated(reference.model, activations):
                        logits = reference.logits(window)
                else:
                    key = (model, way, activations)
                    if key not in models:
                        models[key] = ours.load(paths[model], activations, ours.WAYS[way])
                    logits = ours.logits(models[key], window, 1 if read != "prompt" else None)
                tallies[run].add(expected, logits)
                seconds = time.monotonic() - start
                print(f"window {index + 1}: {' '.join(run[:4])} {seconds:.0f} s", file=sys.stderr)
                if run[1:4] == ("lowered", "f32", "prompt"):
                    first_f32[model] = logits
    return judge(tallies, first_f32, Outcome())


def judge(tallies: dict, first_f32: dict, outcome):
    """One row per run, then the two comparisons between runs."""
    import numpy as np

    emulation = tallies[("dense", "emulated", "auto", "prompt", 4)].result()
    for run, tally in tallies.items():
        model, way, activations, read, _ = run
        result = tally.result()
        row = {"model": model, "way": way, "activations": activations, "read": read}
        row |= {"tokens": result.tokens, "KL": result.kl_mean, "max_KL": result.kl_max}
        row |= {"NMSE": result.nmse, "top-1": result.top1}
        good = result.kl_mean <= LIMITS[(activations, read)]
        if (activations, read) == ("auto", "prompt"):
            good = good and result.top1 >= 0.975
        outcome.add(row, None if way == "emulated" else good)
        if run == ("dense", "lowered", "auto", "prompt", 4):
            ratio = result.kl_mean / emulation.kl_mean
            row = {"model": "dense", "way": "KL / emulated KL", "KL": ratio}
            outcome.add(row, abs(ratio - 1) <= 0.15)
    gap = float(np.abs(first_f32["dense"] - first_f32["sliced"]).max())
    outcome.add({"model": "sliced", "way": "max |logit - dense|", "KL": gap}, gap <= 1e-3)
    return outcome
