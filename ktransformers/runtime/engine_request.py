"""What the batching engine is asked for, and what it hands back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ktransformers import _core
from ktransformers.errors import UserError


class Busy(Exception):
    """The queue is full or the engine is closing. retry_after: seconds worth waiting."""

    def __init__(self, line: str, retry_after: int, closing: bool = False):
        super().__init__(line)
        self.retry_after, self.closing = retry_after, closing


@dataclass
class Request:
    """One generation.

    prompt: ids. sampling: as runtime.session.SamplingOptions. stop: texts that end it and are not
    part of it. stop_ids: ids that end it. top_logprobs, prompt_logprobs: alternatives told with
    each token, None for no log-probabilities. matcher: an object with `mask() -> int32 words` and
    `accept(id)` that says which tokens may come (see engine_grammar). keep_special: special tokens
    whose text is shown.
    """

    prompt: list[int]
    sampling: Any
    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    matcher: Any = None
    keep_special: frozenset[str] = frozenset()
    use_cache: bool = True

    def core(self) -> _core.StreamOptions:
        """Raises: UserError for sampling settings out of range."""
        options = _core.StreamOptions()
        options.sampling = self.sampling.core()
        options.stop_ids = list(self.stop_ids)
        options.min_new_tokens = self.min_new_tokens
        options.top_logprobs = -1 if self.top_logprobs is None else self.top_logprobs
        options.prompt_logprobs = -1 if self.prompt_logprobs is None else self.prompt_logprobs
        options.logit_bias = sorted(self.logit_bias.items())
        return options


# (id, natural logarithm of its probability, [(id, logarithm), ...] of the likeliest)
Logprob = tuple[int, float, list[tuple[int, float]]]


@dataclass
class Delta:
    """What one step added to a generation. text: whole characters; finish: why it ended, if so:
    "stop", "length", "cancelled", "error" or "refused" (the request asked for what cannot be; then
    `error` tells)."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs: list[Logprob] = field(default_factory=list)
    finish: str | None = None
    stop_text: str | None = None  # the stop string that ended it
    error: str | None = None


@dataclass
class Timings:
    """Seconds on time.monotonic's clock; 0 for what has not happened."""

    queued: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0


class Generation:
    """A request under way. Fields are the engine's; other threads read them and call cancel()."""

    def __init__(self, number: int, request: Request, stream: Any, text: Any):
        self.number = number
        self.request = request
        self.stream = stream
        self.text = text  # engine_text.TextOut
        self.times = Timings()
        self.cached_tokens = 0
        self.produced = 0
        self.prompt_told = 0  # tokens of the prompt whose log-probabilities were handed out
        self.delta = Delta()  # grows until the step's deltas are handed out
        self.finish: str | None = None
        self.cancelled = False
        self.paused = False  # its reader is far behind
        self.followers: list[Generation] = []  # wait for this one's prompt, which is theirs too
        self._wake: Callable[[], None] = lambda: None

    @property
    def in_prompt(self) -> bool:
        return self.stream.pending > 1 or self.stream.length == self.stream.prompt_length

    def cancel(self) -> None:
        """Ends it within two steps; harmless when it is over."""
        self.cancelled = True
        self._wake()

    def pause(self, paused: bool) -> None:
        """Keeps it out of steps while its reader does not keep up."""
        self.paused = paused
        self._wake()


def check_request(request: Request, limit: int, vocab_size: int) -> None:
    """Raises: UserError for a prompt that is empty, too long, or not of this vocabulary, and for a
    bias on a token that is not."""
    count = len(request.prompt)
    if not count:
        raise UserError("the prompt is empty")
    if count >= limit:
        raise UserError(
            f"the prompt has {count} tokens; this server's context is {limit} with the answer"
        )
    outside = next((i for i in request.prompt if not 0 <= i < vocab_size), None)
    if outside is not None:
        raise UserError(f"the prompt has token id {outside}; the vocabulary has {vocab_size}")
    outside = next((i for i in request.logit_bias if not 0 <= i < vocab_size), None)
    if outside is not None:
        raise UserError(f"logit_bias has token id {outside}; the vocabulary has {vocab_size}")
