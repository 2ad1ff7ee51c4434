"""Our engine's side of bench.cpu: a process that keeps a model and answers lines (bench.answering).

Prompts go through `Runtime.evaluate`, the way every caller takes; generated tokens are drawn at
random and fed one by one, so that the experts they meet are as varied as a text's. Figures of ours
stand beside the machine's limits of their own moment.
"""

import sys
import time
from dataclasses import dataclass, field

import numpy as np

from bench.answering import answer
from bench.cpu_verdict import ROWS_BEHIND
from bench.moments import PASSES, Moments

SLACK = 256  # positions that a context may be longer than asked for


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
    """job: model, threads, activations, longest (positions behind which a token is generated)."""

    def __init__(self, job: dict):
        from ktransformers.runtime.loading import load_model

        self.rng = np.random.default_rng(7)
        start = time.perf_counter()
        self.model = load_model(
            job["model"],
            cpu_infer=job["threads"],
            activations=job["activations"],
            cache_lens=job["longest"] + 2048,
        )
        seconds = time.perf_counter() - start
        self.runtime = self.model.kt
        self.vocab = self.runtime.decoder.vocab_size
        context = self.runtime.engine.context
        self.moments = Moments(context)
        self.behind = None  # the sequence that tokens are generated for
        self.together: list = []  # those that rows are decoded for
        self.facts = {
            "engine": f"ktransformers {context.isa}", "load_seconds": seconds, "isa": context.isa,
            "threads": context.threads, "activations": self.runtime.engine.activations,
        }  # fmt: skip
        self.evaluate(self.sequence(), 32, True)  # first touch of scratch memory

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

    # ---- what is asked for ----

    def limits(self) -> dict[str, float]:
        return self.moments.limits()

    def prompt(self, length: int) -> dict:
        """Seconds of a prompt, with the limits around it."""
        self.behind, self.together = None, []
        return self.moments.beside(lambda: self.evaluate(self.sequence(), length, True))

    def context(self, length: int) -> int:
        """Makes `length` positions to generate behind, of random keys and values."""
        if self.behind and length <= self.behind.length < length + SLACK:
            return self.behind.length
        self.behind = None  # gives its pages back
        self.behind = sequence = self.sequence()
        sequence.extend(length)
        # Written to: pages that never were are all one page of zeros, which no memory is read for.
        for layer in range(self.runtime.engine.kv.num_layers):
            for begin in range(0, length, 4096):
                rows = min(4096, length - begin)
                parts = [
                    self.rng.standard_normal((rows, part.shape[1]), np.float32)
                    for part in sequence.read(layer, 1)
                ]
                sequence.write(layer, begin, *parts)
        return sequence.length

    def decode(self, tokens: int) -> list[dict]:
        """Seconds of each token behind the context, between two readings of the memory."""
        self.evaluate(self.behind, 1, False)  # threads wake
        return self.moments.pairs(lambda: self.evaluate(self.behind, 1, False), tokens)

    def rows(self, count: int, steps: int) -> list[dict]:
        """Seconds of steps that decode one token for each of `count` sequences, with limits."""
        if len(self.together) != count:
            self.together = [self.sequence() for _ in range(count)]
            for one in self.together:
                self.evaluate(one, ROWS_BEHIND, True)
        self.step_together()
        made = []
        for _ in range(steps):
            int8 = self.moments.int8()
            (pair,) = self.moments.pairs(self.step_together, 1)
            made.append(pair | {"int8_tops": (int8 + self.moments.int8()) / 2})
        return made

    def step_together(self) -> float:
        position = np.array([one.length for one in self.together], np.int32)
        numbers = np.arange(len(self.together), dtype=np.int32)
        tokens = self.tokens(len(numbers))
        start = time.perf_counter()
        self.runtime.evaluate(tokens, position, numbers, False, self.together, numbers)
        return time.perf_counter() - start

    # ---- the inside of a step ----

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

    def phases(self, rows: int, repeats: int) -> list[dict]:
        """Of steps of one generated token, or of a prompt of `rows`: {spans, limits}.

        spans: seconds of each phase; "experts" includes router and shared experts, "head" the last
        norm. limits: of the step's moment.
        """
        marks, is_prompt = Marks(), rows > 1
        decoder, kinds = self.marked(marks)
        sequence, runs = self.sequence(), []
        if not is_prompt:
            self.evaluate(sequence, 128, True)
        which, kind = np.zeros(rows, np.int32), np.full(rows, is_prompt, np.uint8)
        wanted = np.array([rows - 1], np.int32)

        def step() -> float:
            marks.times.clear()
            tokens = self.tokens(rows)
            position = np.arange(sequence.length, sequence.length + rows, dtype=np.int32)
            marks.times.append(time.perf_counter())
            decoder.step(tokens, position, which, kind, [sequence], wanted)
            marks.times.append(time.perf_counter())
            return marks.times[-1] - marks.times[0]

        for _ in range(repeats):
            limits = self.moments.beside(step, PASSES if is_prompt else 1)
            names, run = ["embedding", *kinds, "head"], {}
            for name, span in zip(names, np.diff(marks.times), strict=True):
                run[name] = run.get(name, 0.0) + float(span)
            runs.append({"spans": run, "limits": limits})
            if is_prompt:
                sequence = self.sequence()
        return runs

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


if __name__ == "__main__":
    sys.exit(answer(Ours))
