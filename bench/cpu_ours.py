"""Our engine's side of bench.cpu: a JSON job on standard input, its figures on the last line.

It runs in a process of its own, so that memory and caches are those of one engine. Prompts go
through `Runtime.evaluate`, the way every caller takes; generated tokens are drawn at random and fed
one by one, so that the experts they meet are as varied as a text's.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np


@dataclass
class Marks:
    """Times and, where wanted, the residual stream between the nodes of a step."""

    keep: bool = False
    times: list[float] = field(default_factory=list)
    hidden: list[np.ndarray] = field(default_factory=list)

    def __call__(self, hidden, position, sequence, is_prompt, sequences) -> None:
        if self.keep:
            self.hidden.append(np.array(hidden))
        self.times.append(time.perf_counter())


class Ours:
    def __init__(self, job: dict):
        from ktransformers.runtime.loading import load_model

        self.rng = np.random.default_rng(7)
        longest = max([*job["prompts"], *job["contexts"], 512]) + job["decode"] + 128
        start = time.perf_counter()
        self.model = load_model(
            job["model"],
            cpu_infer=job["threads"],
            activations=job["activations"],
            cache_lens=longest + 1024,
        )
        self.load_seconds = time.perf_counter() - start
        self.runtime = self.model.kt
        self.vocab = self.runtime.decoder.vocab_size

    def tokens(self, count: int) -> np.ndarray:
        return self.rng.integers(300, self.vocab, count).astype(np.int32)

    def sequence(self):
        return self.runtime.engine.kv.make_sequence()

    def evaluate(self, sequence, count: int, is_prompt: bool) -> float:
        """Seconds for `count` random tokens behind what the sequence holds."""
        tokens = self.tokens(count)
        position = np.arange(sequence.length, sequence.length + count, dtype=np.int32)
        zeros = np.zeros(count, np.int32)
        start = time.perf_counter()
        logits = self.runtime.evaluate(
            tokens, position, zeros, is_prompt, [sequence], np.array([count - 1])
        )
        int(logits.argmax())
        return time.perf_counter() - start

    def sweep(self, job: dict) -> dict[str, dict[str, list[float]]]:
        """Prompts of every length, each followed by decoding where that is wanted behind it.

        {"prompt": {length: seconds of each repeat}, "decode": {context: seconds of each token}}
        """
        times: dict = {"prompt": {}, "decode": {}}
        for length in sorted({*job["prompts"], *job["contexts"]}):
            is_prompt = length in job["prompts"]
            repeats = job["repeats"] if is_prompt and length <= 1024 else 1
            for _ in range(repeats):
                sequence = self.sequence()
                seconds = self.evaluate(sequence, length, True)
                if is_prompt:
                    times["prompt"].setdefault(str(length), []).append(seconds)
            if length in job["contexts"]:
                tokens = [self.evaluate(sequence, 1, False) for _ in range(job["decode"])]
                times["decode"][str(length)] = tokens
        return times

    def rows(self, count: int, steps: int) -> list[float]:
        """Seconds of steps that decode one token for each of `count` sequences."""
        sequences = [self.sequence() for _ in range(count)]
        for one in sequences:
            self.evaluate(one, 64, True)
        times = []
        for _ in range(steps):
            position = np.array([one.length for one in sequences], np.int32)
            numbers = np.arange(count, dtype=np.int32)
            tokens = self.tokens(count)
            start = time.perf_counter()
            self.runtime.evaluate(tokens, position, numbers, False, sequences, numbers)
            times.append(time.perf_counter() - start)
        return times

    def marked(self, marks: Marks):
        """The decoder with a mark before every node and one before the head."""
        from ktransformers import _core

        base, engine = self.model.model, self.runtime.engine
        hidden = self.runtime.decoder.hidden_size
        nodes, kinds = [], []
        for index, layer in enumerate(base.layers):
            name = f"model.layers.{index}"
            nodes.append(_core.callback_node(f"{name}.before", marks, hidden))
            norm, attention = layer.input_layernorm.core, layer.self_attn.core
            nodes.append(_core.attention_node(f"{name}.self_attn", norm, attention, index))
            nodes.append(_core.callback_node(f"{name}.between", marks, hidden))
            norm, ffn = layer.post_attention_layernorm.core, layer.mlp.core
            nodes.append(_core.feed_forward_node(f"{name}.mlp", norm, ffn))
            kinds += ["attention", "experts" if hasattr(layer.mlp, "gate") else "dense"]
        nodes.append(_core.callback_node("after", marks, hidden))
        return _core.Decoder(
            engine.context, base.embed_tokens.core, nodes, base.norm.core,
            self.model.lm_head.core, engine.kv, engine.arithmetic,
        ), kinds  # fmt: skip

    def phases(self, rows: int, is_prompt: bool, repeats: int) -> dict[str, float]:
        """Seconds of each phase of a step of `rows` rows: the median over repeats.

        "experts" includes router and shared experts, "head" the last norm.
        """
        marks = Marks()
        decoder, kinds = self.marked(marks)
        sequence, runs = self.sequence(), []
        if not is_prompt:
            self.evaluate(sequence, 128, True)
        for _ in range(repeats):
            marks.times.clear()
            tokens = self.tokens(rows)
            position = np.arange(sequence.length, sequence.length + rows, dtype=np.int32)
            which, kind = np.zeros(rows, np.int32), np.full(rows, is_prompt, np.uint8)
            start = time.perf_counter()
            decoder.step(tokens, position, which, kind, [sequence], np.array([rows - 1], np.int32))
            end = time.perf_counter()
            spans = np.diff([*marks.times, end])
            run = {"embedding": marks.times[0] - start}
            for kind_name, span in zip([*kinds, "head"], spans, strict=True):
                run[kind_name] = run.get(kind_name, 0.0) + float(span)
            runs.append(run)
            if is_prompt:
                sequence = self.sequence()
        return {name: median(run[name] for run in runs) for name in runs[0]}

    def routing(self, tokens: int = 512) -> dict[str, list[float]]:
        """Distinct experts that 1, 8 and 512 tokens meet in each MoE layer, averaged over windows.

        {"1": [per layer], "8": [...], "512": [...]}; the router is asked with the very rows the
        step gave it.
        """
        marks = Marks(keep=True)
        decoder, kinds = self.marked(marks)
        ids = self.tokens(tokens)
        position, zeros = np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.int32)
        decoder.step(ids, position, zeros, np.ones(tokens, np.uint8), [self.sequence()],
                     np.array([tokens - 1], np.int32))  # fmt: skip
        found: dict[str, list[float]] = {"1": [], "8": [], "512": []}
        for index, layer in enumerate(self.model.model.layers):
            if kinds[2 * index + 1] != "experts":
                continue
            rows = layer.post_attention_layernorm.core.forward(
                self.runtime.engine.context, marks.hidden[2 * index + 1]
            )
            chosen, _ = layer.mlp.gate.core.forward(self.runtime.engine.context, rows)
            for window, counts in found.items():
                size = int(window)
                parts = [chosen[at : at + size] for at in range(0, tokens - size + 1, size)]
                counts.append(float(np.mean([len(np.unique(part)) for part in parts])))
        return found


def run(job: dict) -> dict:
    """job: model, prompts, contexts (lengths), decode (tokens), rows, repeats, threads,
    activations, details (phases and routing too)."""
    ours = Ours(job)
    context = ours.runtime.engine.context
    result: dict = {
        "engine": f"ktransformers {context.isa}",
        "threads": context.threads,
        "isa": context.isa,
        "activations": job["activations"],
        "load_seconds": ours.load_seconds,
    }
    ours.evaluate(ours.sequence(), 32, True)  # first touch of scratch memory and cache pages
    result |= ours.sweep(job)
    result["rows"] = {str(n): ours.rows(n, max(job["decode"] // 2, 4)) for n in job["rows"]}
    if job["details"]:
        result["phases"] = {
            "decode": ours.phases(1, False, 8),
            "prompt": ours.phases(512, True, 1),
        }
        result["routing"] = ours.routing()
    return result


if __name__ == "__main__":
    from ktransformers.errors import UserError

    try:
        outcome = run(json.load(sys.stdin))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print()
    print(json.dumps(outcome))
