"""The batching engine: one thread that owns the model and runs all generations together.

Each round it takes in what arrived, lets go of what was cancelled, admits what fits, and evaluates
one step of everybody (engine_schedule says who and how much). Rows of different generations do not
touch each other's arithmetic, so what a request reads does not depend on who else is served.

Keys and values live in pages of 64 positions. Pages of prompts and answers gone by are kept under
their tokens until the room is needed; a request takes those of its beginning and evaluates what is
left.
When the pages run out while generating, the generation that came last gives its own up and goes on
later; its tokens are evaluated again in the same arithmetic, so its text does not change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ktransformers import _core
from ktransformers.errors import UserError
from ktransformers.runtime.engine_request import Busy, Delta, Generation, Request, check_request
from ktransformers.runtime.engine_schedule import Scheduler
from ktransformers.runtime.engine_stats import EngineStats
from ktransformers.runtime.engine_text import TextOut

log = logging.getLogger("ktransformers.engine")

PAGE = _core.KV_PAGE
LOGIT_VALUES = 8 << 20  # of a step that wants every row's logits
PAUSE_SECONDS = 0.2  # between looks while every reader is far behind


class BatchEngine:
    """deliver(list of (generation, delta)) is called once a step from the engine's thread.

    max_batch: generations in one step; max_queue: those that may wait. context: positions of one
    request; None takes all that the cache holds.
    Raises: UserError for a model that is not lowered.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        deliver: Callable[[list[tuple[Generation, Delta]]], None],
        max_batch: int = 8,
        max_queue: int = 64,
        context: int | None = None,
        prefix_cache: bool = True,
    ):
        kt = model.kt
        if kt.decoder is None:
            raise UserError(f"serving needs a lowered model: {'; '.join(kt.notes)}")
        self.model, self.tokenizer, self.deliver = model, tokenizer, deliver
        self.kt, self.pool = kt, kt.engine.kv
        self.max_batch, self.max_queue = max_batch, max_queue
        room = self.pool.page_limit * PAGE
        self.context = min(context or room, room)
        self.cache = _core.PrefixCache(self.pool) if prefix_cache else None
        self.scheduler = Scheduler(kt.chunk_size)
        self.stats = EngineStats()
        self.running: list[Generation] = []
        self.waiting: deque[Generation] = deque()
        self._arrivals: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._numbers = 0
        self._thread = threading.Thread(target=self._run, name="kt-engine", daemon=True)

    # ---- any thread ----

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, requests: list[Request]) -> list[Generation]:
        """Queues requests; those after the first share its prompt and wait for it to be evaluated.

        Raises: UserError for a request that can never run, Busy when the queue is full.
        """
        made = []
        for request in requests:
            check_request(request, self.context, self.kt.decoder.vocab_size)
            stream = _stream(self.pool, request)
            text = TextOut(self.tokenizer, request.stop, request.keep_special)
            made.append(Generation(0, request, stream, text))
        with self._changed:
            if self._closing:
                raise Busy("the server is shutting down", 5, closing=True)
            queued = len(self.waiting) + len(self._arrivals)
            if queued + len(made) > self.max_queue + self.max_batch - len(self.running):
                self.stats.refused += 1
                raise Busy(
                    f"the queue is full, {queued} waiting; try again later",
                    self.stats.retry_after(queued),
                )
            for one in made:
                self._numbers += 1
                one.number, one._wake = self._numbers, self.wake
            made[0].followers = made[1:]
            self._arrivals.append(made[0])
            self._changed.notify()
        return made

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def close(self, seconds: float = 1.0) -> bool:
        """Ends every generation as cancelled; True when the thread has come to its end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def queued(self) -> int:
        return len(self.waiting) + len(self._arrivals)

    # ---- the engine's thread ----

    def _run(self) -> None:
        while True:
            out: dict[Generation, None] = {}  # those with news, in order
            with self._changed:
                while not (self._arrivals or self.running or self.waiting or self._closing):
                    self._changed.wait()
                self.waiting.extend(self._arrivals)
                self._arrivals.clear()
            try:
                self._round(out)
            except Exception as error:  # of a whole step: a fault of ours
                log.exception("a step failed")
                for one in list(self.running):
                    self._end(one, "error", out, str(error) or type(error).__name__)
            self._hand_out(out)
            if self._closing and not (self.running or self.waiting or self._arrivals):
                if self.cache:
                    self.cache.clear()
                return

    def _round(self, out: dict[Generation, None]) -> None:
        for one in [*self.running, *self.waiting]:
            if self._closing or one.cancelled:
                self._end(one, "cancelled", out)
        self._admit(out)
        able = [one for one in self.running if not one.paused]
        decoding = [one for one in able if not one.in_prompt]
        prompts = [one for one in able if one.in_prompt]
        rows = self.scheduler.plan(len(decoding), [self._wants(one) for one in prompts])
        shares = [(one, 1) for one in decoding]
        shares += [(one, count) for one, count in zip(prompts, rows, strict=True) if count]
        shares = self._make_room(shares)
        if not shares:
            if not self._closing and (self.running or self.waiting):
                with self._changed:
                    self._changed.wait(PAUSE_SECONDS)
            return
        shares = [(one, count) for one, count in shares if self._masked(one, count, out)]
        if not shares:
            return
        plain = sum(not one.in_prompt for one, _ in shares)
        prompt_rows = sum(count for one, count in shares if one.in_prompt)
        began = time.perf_counter()
        with self.kt.lock:
            outcomes = _core.run_streams(
                self.kt.decoder, [one.stream for one, _ in shares], [count for _, count in shares]
            )
        seconds = time.perf_counter() - began
        self.scheduler.ran(plain, prompt_rows, seconds)
        self.stats.step(plain, prompt_rows, seconds)
        for (one, _), outcome in zip(shares, outcomes, strict=True):
            self._digest(one, outcome, out)

    def _masked(self, one: Generation, count: int, out: dict) -> bool:
        """Sets the mask of a row that will be sampled; False when its grammar has failed."""
        if one.request.matcher is None or count != one.stream.pending:
            return True
        try:
            mask = one.request.matcher.mask()
        except UserError as error:
            self._end(one, "refused", out, str(error))
            return False
        if mask is not None:
            one.stream.set_mask(mask)
        return True

    def _wants(self, one: Generation) -> int:
        left = one.stream.pending
        if one.request.prompt_logprobs is None:
            return left
        return min(left, max(1, LOGIT_VALUES // self.kt.decoder.vocab_size))

    def _admit(self, out: dict[Generation, None]) -> None:
        """Moves waiting generations into the batch while there is a place and room for a prompt."""
        while self.waiting and len(self.running) < self.max_batch:
            one = self.waiting[0]
            stream, sequence = one.stream, None
            if self.cache and one.request.use_cache and one.request.prompt_logprobs is None:
                sequence = self.cache.match(stream.tokens, stream.length - 1)
            pages = -(-(stream.length + 1) // PAGE) - (len(sequence.pages) if sequence else 0)
            promised = sum(
                -(-other.stream.length // PAGE) - len(other.stream.sequence.pages)
                for other in self.running
            )
            free = self.pool.page_limit - self.pool.pages_in_use - promised
            if pages > free and self.cache:
                free += self.cache.evictable
            if pages > free and self.running:
                return
            self.waiting.popleft()
            if sequence is not None:
                stream.sequence = sequence
                one.cached_tokens = max(one.cached_tokens, sequence.length)
            if not one.times.admitted:
                one.times.admitted = time.monotonic()
                self.stats.admitted(one)
            self.running.append(one)

    def _make_room(self, shares: list) -> list:
        """Sees to it that the pages of a step are free: evicts, else sends the newest back."""
        while shares:
            needed = 0
            for one, count in shares:
                held = one.stream.sequence
                needed += -(-(held.length + count) // PAGE) - len(held.pages)
            missing = needed - (self.pool.page_limit - self.pool.pages_in_use)
            if missing > 0 and self.cache:
                missing -= self.cache.evict(missing)
            if missing <= 0:
                return shares
            newest = self.running[-1]
            self.running.pop()
            newest.stream.sequence = self.pool.make_sequence()
            self.waiting.appendleft(newest)
            self.stats.preempted += 1
            shares = [(one, count) for one, count in shares if one is not newest]
        return shares

    def _digest(self, one: Generation, outcome: tuple, out: dict) -> None:
        token, logprob, prompt_logprobs, error = outcome
        delta = one.delta
        if prompt_logprobs:
            # A generation that was sent back evaluates its prompt a second time.
            end = min(one.stream.sequence.length, one.stream.prompt_length - 1)
            told = max(0, one.prompt_told - (end - len(prompt_logprobs)))
            delta.prompt_logprobs += prompt_logprobs[told:]
            one.prompt_told = max(one.prompt_told, end)
        if error is not None:
            self._end(one, "error", out, error)
            return
        if token is None:
            return
        if one.produced == 0:
            self._prompt_done(one)
        request = one.request
        if request.max_new_tokens == 0:  # only the prompt's log-probabilities were wanted
            self._end(one, "length", out)
            return
        one.produced += 1
        if request.matcher is not None:
            try:
                request.matcher.accept(token)
            except UserError as error:
                self._end(one, "refused", out, str(error))
                return
        if token in request.stop_ids and one.produced > request.min_new_tokens:
            self._end(one, "stop", out)
            return
        delta.tokens.append(token)
        if logprob is not None:
            delta.logprobs.append(logprob)
        delta.text += one.text.push(token)
        self.stats.generated += 1
        if one.text.stopped is not None:
            self._end(one, "stop", out)
        elif request.matcher is not None and request.matcher.complete:
            self._end(one, "stop", out)
        elif one.produced >= request.max_new_tokens or one.stream.length >= self.context:
            self._end(one, "length", out)
        else:
            out[one] = None

    def _prompt_done(self, one: Generation) -> None:
        one.times.first_token = time.monotonic()
        self.stats.first_token(one)
        if self.cache and one.request.use_cache:
            self.cache.insert(one.stream)
        for follower in reversed(one.followers):
            self.waiting.appendleft(follower)
        one.followers = []

    def _end(self, one: Generation, why: str, out: dict, error: str | None = None) -> None:
        if one in self.running:
            self.running.remove(one)
        elif one in self.waiting:
            self.waiting.remove(one)
        for follower in one.followers:  # the first of a group ended before its prompt was evaluated
            if why in ("cancelled", "error", "refused"):
                self._end(follower, why, out, error)
            else:
                self.waiting.append(follower)
        one.followers = []
        if self.cache and one.request.use_cache and why != "error":
            self.cache.insert(one.stream)
        one.stream.sequence.truncate(0)
        one.delta.text += one.text.finish()
        one.delta.stop_text = one.text.stopped
        one.finish, one.delta.finish, one.delta.error = why, why, error
        one.times.finished = time.monotonic()
        self.stats.finished(one)
        out[one] = None

    def _hand_out(self, out: dict[Generation, None]) -> None:
        ready = []
        for one in out:
            ready.append((one, one.delta))
            one.delta = Delta()
        if ready:
            self.deliver(ready)


def _stream(pool: Any, request: Request) -> _core.Stream:
    """Raises: UserError for settings out of range."""
    try:
        return _core.Stream(pool.make_sequence(), request.prompt, request.core())
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
