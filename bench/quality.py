"""What quantising the weights, or asking fewer experts, does to a model's words.

    python -m bench.quality [--tokens 8192] [--model tests/data/tiny_deepseek_v3.f16.gguf]

The small DeepSeek-V3 model is quantised by this project's own quantizers to every type they know,
and run on pieces of its text that it was not trained on. Perplexity is per token; KL and top-1 are
against the F16 file run in f32. Activations are "exact" everywhere else, so that the weights alone
make the difference; the column KL_default repeats KL with the default rounding of prompts.
Beside it: 8, 6 and 4 of the 16 experts per token. Figures go to bench/results/quality.json.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bench import report

MODEL = report.ROOT / "tests" / "data" / "tiny_deepseek_v3.f16.gguf"
TEXT = report.ROOT / "tests" / "data" / "tinyshakespeare_200k.txt"
WINDOW = 512
HELD_OUT = 111_539  # characters at the end of the text that the model was not trained on
COLUMNS = "weights bits/weight perplexity KL max_KL top-1 KL_default seconds".split()
EXPERT_COLUMNS = "experts perplexity KL max_KL top-1".split()


def is_quantised(info) -> bool:
    """Converters keep vectors and routers in F32; every other matrix is quantised."""
    return len(info.shape) > 1 and info.type not in ("f32",)


def quantise_rows(values: np.ndarray, kind: str) -> np.ndarray:
    """values: [rows, columns] float32 -> blocks [rows, row_bytes], on two threads."""
    from ktransformers import _core

    halves = np.array_split(values, 2)
    done: list = [None] * len(halves)

    def work(i: int) -> None:
        done[i] = _core.quantize(halves[i], kind)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(halves))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.concatenate(done)


def rewrite(model, target: Path, kind: str | None = None, keys: dict | None = None) -> float:
    """Copies a GGUF, with all matrices as `kind` and integer keys changed; bits per weight.

    kind: None keeps the types. Raises ValueError for rows that are not whole blocks of `kind`.
    """
    from ktransformers import _core

    keys = keys or {}
    types = {info.name: kind if kind and is_quantised(info) else info.type
             for info in model.tensors.values()}  # fmt: skip
    writer = _core.GgufWriter(str(target))
    for key, value in model.metadata.items():
        writer.add(key, model.metadata.type_of(key), keys.get(key, value))
    for info in model.tensors.values():
        writer.add_tensor(info.name, types[info.name], info.shape)
    weights = bits = 0
    for info in model.tensors.values():
        if types[info.name] == info.type:
            data = model.data(info.name)
        else:
            rows = model.dequantize(info.name).reshape(-1, info.shape[-1])
            data = quantise_rows(rows, types[info.name])
        if is_quantised(info):
            weights += int(np.prod(info.shape))
            bits += 8 * data.nbytes
        writer.write(data)
    writer.finish()
    return bits / weights


def windows_of(path: Path, text: Path, tokens: int) -> list[list[int]]:
    """Windows spread evenly over the text's end, each opened by the begin token.

    Plays follow one another there, some harder than others: the last words alone would mislead.
    """
    from ktransformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path))
    content = text.read_text(encoding="utf-8")[-HELD_OUT:]
    ids = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
    whole = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
    count = tokens // WINDOW
    if not 0 < count <= len(whole):
        raise ValueError(f"--tokens {tokens}: {WINDOW} to {len(whole) * WINDOW} can be used")
    chosen = [whole[i * len(whole) // count] for i in range(count)]
    return [[tokenizer.bos_token_id, *window] for window in chosen]


def run(path: Path, activations: str, windows: list[list[int]]) -> list[np.ndarray]:
    """Logits that predict every token but a window's first: [window, vocabulary] each."""
    from tests.support import ours

    model = ours.load(path, activations, lowered=True)
    return [ours.logits(model, ids[:-1]) for ids in windows]


def perplexity(logits: list[np.ndarray], windows: list[list[int]]) -> float:
    from tests.support.compare import log_softmax

    nats = count = 0.0
    for values, ids in zip(logits, windows, strict=True):
        target = np.asarray(ids[1:])
        nats -= log_softmax(values)[np.arange(len(target)), target].sum()
        count += len(target)
    return float(np.exp(nats / count))


def against(base: list[np.ndarray], logits: list[np.ndarray]):
    from tests.support.compare import Tally

    tally = Tally()
    for a, b in zip(base, logits, strict=True):
        tally.add(a, b)
    return tally.result()


def figures(base: list[np.ndarray], logits: list[np.ndarray], windows: list[list[int]]) -> dict:
    result = against(base, logits)
    row = {"perplexity": perplexity(logits, windows), "KL": result.kl_mean}
    return row | {"max_KL": result.kl_max, "top-1": result.top1}


def check_base(path: Path, base: list[np.ndarray], windows: list[list[int]]) -> float:
    """KL of our f32 logits to transformers' on the first window: the base is what it says."""
    from tests.support import tiny_deepseek
    from tests.support.compare import compare
    from tests.support.reference import Reference

    reference = Reference(tiny_deepseek.load_model(path))
    return compare(reference.logits(windows[0][:-1]), base[0]).kl_mean


def main(argv: list[str] | None = None) -> int:
    from ktransformers import _core
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.errors import UserError

    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args(argv)

    if not options.text.is_file():
        print(f"error: {options.text}: no such file", file=sys.stderr)
        return 2
    print(report.header())
    try:
        model = open_model(options.model)
        windows = windows_of(options.model, options.text, options.tokens)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    base = run(options.model, "f32", windows)
    row = {"weights": "f16, f32 activations", "bits/weight": 16.0}
    rows = [row | {"perplexity": perplexity(base, windows)}]
    kinds = [one["name"] for one in _core.formats() if one["can_quantize"]]
    kinds = ["f16", *(kind for kind in kinds if kind not in ("f32", "f16", "bf16"))]
    experts = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for kind in kinds:
            start = time.monotonic()
            bits = rewrite(model, path, None if kind == "f16" else kind)
            row = {"weights": kind, "bits/weight": bits, "seconds": time.monotonic() - start}
            row |= figures(base, run(path, "exact", windows), windows)
            row["KL_default"] = against(base, run(path, "auto", windows)).kl_mean
            rows.append(row)
        rows[1:] = sorted(rows[1:], key=lambda row: -row["bits/weight"])
        for count in (8, 6, 4):
            rewrite(model, path, keys={"deepseek2.expert_used_count": count})
            row = {"experts": f"{count} of 16"}
            experts.append(row | figures(base, run(path, "exact", windows), windows))

    print(f"\n{options.model.name}, {options.tokens} held-out tokens of {options.text.name}")
    print(report.table(COLUMNS, [[row.get(column) for column in COLUMNS] for row in rows]))
    print("\nFewer experts, F16 weights")
    table = [[row[column] for column in EXPERT_COLUMNS] for row in experts]
    print(report.table(EXPERT_COLUMNS, table))
    distance = check_base(options.model, base, windows)
    print(f"\nKL of the base to transformers fp32: {distance:.1e}")
    payload = {"tokens": options.tokens, "weights": rows, "experts": experts}
    path = report.write_json("quality", payload | {"base_KL": distance})
    print(f"figures in {path.relative_to(report.ROOT)}")
    return 0 if distance <= 1e-8 else 1


if __name__ == "__main__":
    sys.exit(main())
