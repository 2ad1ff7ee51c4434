"""One conversation at a time over a loaded model: what local_chat talks to.

The keys and values of earlier turns stay in the cache; a new turn evaluates only the tokens behind
the longest prefix it shares with them.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ktransformers import _core
from ktransformers.errors import UserError
from ktransformers.runtime.loading import load_model as load_model


@dataclass(frozen=True)
class SamplingOptions:
    """temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and penalties of 1, 0, 0 are off.

    seed None takes a new one at every start.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_new_tokens: int = 1000
    stop_ids: tuple[int, ...] = ()

    def core(self) -> _core.SamplingOptions:
        options = _core.SamplingOptions()
        options.greedy = self.temperature == 0
        options.temperature = self.temperature
        options.top_p, options.top_k, options.min_p = self.top_p, self.top_k, self.min_p
        options.repetition_penalty = self.repeat_penalty
        options.presence_penalty = self.presence_penalty
        options.frequency_penalty = self.frequency_penalty
        options.seed = time.time_ns() % (1 << 62) if self.seed is None else self.seed
        return options


@dataclass
class Stats:
    """Of the last answer; prompt_count counts evaluated tokens, not those found in the cache."""

    prompt_count: int = 0
    prompt_seconds: float = 0.0
    eval_count: int = 0
    eval_seconds: float = 0.0


@dataclass
class ChatSession:
    """append() the tokens of the whole conversation, then iterate over generate()."""

    model: Any
    tokenizer: Any = None
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self):
        kt = self.model.kt
        self.chunk = kt.chunk_size
        self.sequence = kt.engine.kv.make_sequence()
        self.cached: list[int] = []  # tokens the sequence holds
        self.pending: list[int] = []
        self._stop = threading.Event()

    def append(self, ids: list[int]) -> None:
        """Sets the conversation to `ids`; what the cache holds of its beginning is kept."""
        shared = 0
        for shared, (old, new) in enumerate(zip(self.cached, ids, strict=False), 1):  # noqa: B007
            if old != new:
                shared -= 1
                break
        shared = min(shared, len(ids) - 1)  # the last token's logits are needed
        self.sequence.truncate(shared)
        self.cached = self.cached[:shared]
        self.pending = list(ids[shared:])

    def stop(self) -> None:
        """Ends generate() after the token under way; safe in a signal handler."""
        self._stop.set()

    def generate(self, sampling: SamplingOptions) -> Iterator[int]:
        """Token ids of the answer, without the stop id. Raises: UserError if the cache is full."""
        self._stop.clear()
        self.stats = Stats(prompt_count=len(self.pending))
        try:
            sampler = _core.Sampler(sampling.core())
        except ValueError as error:
            raise UserError(str(error)) from error
        sampler.saw(self.cached + self.pending)
        began = time.perf_counter()
        logits = None
        while self.pending:
            chunk, rest = self.pending[: self.chunk], self.pending[self.chunk :]
            logits = self._step(chunk, prompt=True, last=not rest)
            self.pending = rest
            if self._stop.is_set():
                return
        self.stats.prompt_seconds = time.perf_counter() - began
        began = time.perf_counter()
        for produced in range(sampling.max_new_tokens):
            token = sampler.sample(logits[0])
            if token in sampling.stop_ids:
                return
            yield token
            if self._stop.is_set() or produced + 1 == sampling.max_new_tokens:
                return
            logits = self._step([token], prompt=False, last=True)
            self.stats.eval_count += 1
            self.stats.eval_seconds = time.perf_counter() - began

    def _step(self, tokens: list[int], prompt: bool, last: bool) -> np.ndarray:
        start, count = self.sequence.length, len(tokens)
        logits = self.model.kt.evaluate(
            np.array(tokens, np.int32),
            np.arange(start, start + count, dtype=np.int32),
            np.zeros(count, np.int32),
            prompt,
            [self.sequence],
            [count - 1] if last else [],
        )
        self.cached += tokens
        return logits


def build_tokenizer(gguf, model_path: str | None = None):
    """See checkpoint.tokenizer.build_tokenizer."""
    from ktransformers.checkpoint.tokenizer import build_tokenizer as build

    return build(gguf, model_path)


def stop_ids(gguf, tokenizer=None) -> tuple[int, ...]:
    """Ids that end an answer."""
    from ktransformers.checkpoint.generation_config import read_generation_config

    return tuple(read_generation_config(gguf)["eos_token_id"])
