"""What the options of cards that change what a model says cost: an FP8 cache, deferred experts.

    python -m bench.cuda.cost [--tokens 4096]

In torch, on weights that have learned something, over text the small DeepSeek-V3 never saw: its
rounding and its sums are those that the tests hold the card's kernels and steps against. KL is
against the same model without the option, in nats per token. Every token counts as generated.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from transformers import DynamicCache

from bench import report
from tests.support import smollm2, tiny_deepseek
from tests.support.compare import kl, log_softmax
from tests.support.deferral import Deferral
from tests.support.reference import SMOLLM2, Reference

WINDOW = 512
COLUMNS = ["model", "option", "KL", "largest", "top-1", "perplexity", "rise"]


def fp8_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows as an FP8 cache gives them back: E4M3 times the least power of two that holds them."""
    mantissa, exponent = torch.frexp(x.abs().amax(-1, keepdim=True) / 448)
    exponent = (exponent - (mantissa == 0.5).int()).clamp(-24, 15)
    return torch.ldexp(torch.ldexp(x, -exponent).to(torch.float8_e4m3fn).float(), exponent)


class Fp8Cache(DynamicCache):
    """Values of grouped-query attention. keys: what cards do not do, to show why."""

    def __init__(self, keys: bool = False) -> None:
        super().__init__()
        self.keys = keys

    def update(self, key_states, value_states, *args, **kwargs):
        key_states = fp8_rows(key_states) if self.keys else key_states
        return super().update(key_states, fp8_rows(value_states), *args, **kwargs)


@contextmanager
def fp8_latents(model) -> Iterator[None]:
    """The latents of every layer, rounded where they are cached; their rotated part is not."""
    norms = [layer.self_attn.kv_a_layernorm for layer in model.model.layers]
    hooks = [n.register_forward_hook(lambda _module, _in, out: fp8_rows(out)) for n in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def deferring(deferral: Deferral, count: int) -> Iterator[None]:
    deferral.on, deferral.count = True, count
    try:
        yield
    finally:
        deferral.on = False


@torch.no_grad()
def logits(model, ids: list[int], cache: Callable = lambda: None) -> np.ndarray:
    """[tokens, vocabulary], in windows that know nothing of one another."""
    rows = []
    for begin in range(0, len(ids), WINDOW):
        window = torch.tensor([ids[begin : begin + WINDOW]])
        rows.append(model(window, past_key_values=cache()).logits[0].numpy())
    return np.concatenate(rows)


def nats(found: np.ndarray, ids: list[int]) -> float:
    """Of the text, per token; a window's first token is given."""
    places = [i for i in range(len(ids) - 1) if (i + 1) % WINDOW]
    chosen = log_softmax(found[places])[np.arange(len(places)), [ids[i + 1] for i in places]]
    return -float(chosen.mean())


def compared(name: str, ids: list[int], plain: np.ndarray, ways: dict) -> list[dict]:
    """ways: {option: logits()}."""
    rows, before = [], np.exp(nats(plain, ids))
    for option, run in ways.items():
        found = run()
        away, after = kl(plain, found), np.exp(nats(found, ids))
        rows.append({
            "model": name, "option": option, "KL": float(away.mean()),
            "largest": float(away.max()),
            "top-1": float((plain.argmax(-1) == found.argmax(-1)).mean()),
            "perplexity": float(after), "rise": float(after / before - 1),
        })  # fmt: skip
    return rows


def deepseek_rows(count: int) -> list[dict]:
    model = tiny_deepseek.load_model()
    text = tiny_deepseek.held_out_text(tiny_deepseek.TEXT.read_text(encoding="utf-8"))
    ids = tiny_deepseek.load_tokenizer().encode(text).ids[:count]
    plain = logits(model, ids)

    def under(context) -> np.ndarray:
        with context:
            return logits(model, ids)

    ways: dict = {"FP8 cache": lambda: under(fp8_latents(model))}
    deferral = Deferral(model, 0, lambda _layer, experts: torch.ones_like(experts, dtype=bool))
    used = model.config.num_experts_per_tok
    for n in (1, 2, 3, 4):
        ways[f"{n} of {used} experts deferred"] = lambda n=n: under(deferring(deferral, n))
    return compared("small DeepSeek-V3", ids, plain, {"none": lambda: under(nullcontext())} | ways)


def smollm2_rows(count: int) -> list[dict]:
    from ktransformers import AutoTokenizer

    path = smollm2.dense_path()
    model = Reference.load(path, SMOLLM2).model
    text = tiny_deepseek.TEXT.read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(str(path))(text[: 8 * count]).input_ids[:count]
    plain = logits(model, ids)
    return compared(
        "SmolLM2-135M",
        ids,
        plain,
        {
            "FP8 cache": lambda: logits(model, ids, Fp8Cache),
            "(keys in FP8 too)": lambda: logits(model, ids, lambda: Fp8Cache(keys=True)),
        },
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda.cost", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tokens", type=int, default=4096, help="of text, per model")
    options = parser.parse_args(argv)
    print(report.header())
    rows = deepseek_rows(options.tokens) + smollm2_rows(options.tokens // 4)
    print(report.table(COLUMNS, [[row[c] for c in COLUMNS] for row in rows]))
    name = report.write_json("cuda_cost", {"tokens": options.tokens, "rows": rows})
    print(f"figures in {name.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
