"""`ktransformers compare`: one model under two rule files. Speed, memory, KL, first difference."""

import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ktransformers.errors import UserError
from ktransformers.optimize.system import own_memory
from ktransformers.util import measure

PROMPTS = (
    "Explain why the sky is blue in two sentences.",
    "Write a Python function that reverses a string.",
    "List three facts about the Moon.",
)
TEXT = (
    "The library stood at the end of the street, where the road turned towards the river. In the "
    "morning the light came through the tall windows and lay in squares upon the floor. People "
    "came in from the cold, shook the rain from their coats and looked for a place to sit. Some "
    "read the newspapers, some wrote letters, and a few only wanted to be warm for a while. "
)


def run(
    gguf_path: str, rules_a: str, rules_b: str, text_path: str | None = None, tokens: int = 256,
    new_tokens: int = 48, as_json: bool = False,
) -> None:  # fmt: skip
    """Checks both files, then loads and runs the model twice. Raises: UserError."""
    from ktransformers.optimize.rules import load_rules

    for path in (rules_a, rules_b):
        load_rules(path)
    text = read_text(text_path) if text_path else TEXT * 16
    a = measured(gguf_path, rules_a, text, tokens, new_tokens)
    b = measured(gguf_path, rules_b, text, tokens, new_tokens)
    differences = [
        measure.first_difference(x, y) for x, y in zip(a["answers"], b["answers"], strict=True)
    ]
    each = np.concatenate([measure.kl(x, y) for x, y in zip(a["logits"], b["logits"], strict=True)])
    result = {
        "model": gguf_path,
        "text_tokens": int(len(each)),
        "kl_mean": float(each.mean()),
        "kl_max": float(each.max()),
        "first_difference": differences,
        "runs": [
            {k: v for k, v in one.items() if k not in ("logits", "answers")} for one in (a, b)
        ],
    }
    print(json.dumps(result, indent=1) if as_json else "\n".join(table(result)))


def read_text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def measured(gguf_path: str, rules: str, text: str, tokens: int, new_tokens: int) -> dict[str, Any]:
    """One run: load seconds, bytes by device, prompt and generation speed, answers, logits."""
    import torch

    from ktransformers.runtime.auto import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_path)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    before, start = own_memory(), time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(gguf_path, optimize_config_path=rules)
    load_seconds, memory = time.monotonic() - start, own_memory() - before
    start = time.monotonic()
    logits = [part for _, part in measure.text_logits(model, ids)]
    prompt_seconds = time.monotonic() - start
    answers, seconds, count = [], 0.0, 0
    for prompt in PROMPTS:
        given = torch.tensor([tokenizer(prompt)["input_ids"]])
        start = time.monotonic()
        with torch.no_grad():
            out = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=new_tokens,
                do_sample=False,
            )  # fmt: skip
        seconds += time.monotonic() - start
        answers.append(out[0, given.shape[1] :].tolist())
        count += len(answers[-1])
    plan = model.kt.plan
    found = {
        "rules": rules,
        "load_seconds": load_seconds,
        "device_bytes": plan.device_bytes(),
        "memory": memory,
        "torch_modules": sum(row.backend == "torch" and bool(row.parameters) for row in plan.rows),
        "prompt_tokens_per_second": len(ids) / prompt_seconds,
        "tokens_per_second": count / seconds,
        "perplexity": float(
            np.exp(np.mean([measure.nats(rows, np.asarray(i)) for rows, i in
                            zip(logits, _pieces(ids), strict=True)]))
        ),
        "logits": logits,
        "answers": answers,
    }  # fmt: skip
    del model
    gc.collect()
    return found


def _pieces(ids: list[int], piece: int = 256) -> list[list[int]]:
    return [p for p in (ids[i : i + piece] for i in range(0, len(ids), piece)) if len(p) > 1]


def table(result: dict[str, Any]) -> list[str]:
    """The comparison as lines."""
    from ktransformers.optimize.report import size_text

    rows = [("", "A", "B")]
    runs = result["runs"]
    rows.append(("rules", *(Path(one["rules"]).name for one in runs)))
    for name, key, form in (
        ("load, s", "load_seconds", "{:.1f}"),
        ("text, tokens/s", "prompt_tokens_per_second", "{:.1f}"),
        ("answers, tokens/s", "tokens_per_second", "{:.1f}"),
        ("perplexity of the text", "perplexity", "{:.3f}"),
        ("plain torch modules", "torch_modules", "{}"),
    ):
        rows.append((name, *(form.format(one[key]) for one in runs)))
    memory = [
        ", ".join(f"{size_text(n)} {d}" for d, n in one["device_bytes"].items()) for one in runs
    ]
    rows.append(("weights", *memory))
    rows.append(("memory taken", *(size_text(one["memory"]) for one in runs)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    out = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    out.append(
        f"KL(A || B) over {result['text_tokens']} tokens: mean {result['kl_mean']:.2e}, "
        f"largest {result['kl_max']:.2e} nats"
    )
    for prompt, at in zip(PROMPTS, result["first_difference"], strict=True):
        out.append(f"{'same answer' if at is None else f'differs at token {at}'}: {prompt}")
    return out
