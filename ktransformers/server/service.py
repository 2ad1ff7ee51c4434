"""What all APIs share: the engine and its deltas on the event loop, tokenizer, templates, names."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ktransformers.checkpoint.stream_decoder import StreamDecoder
from ktransformers.errors import UserError
from ktransformers.runtime.engine import BatchEngine
from ktransformers.runtime.engine_grammar import Grammars
from ktransformers.runtime.engine_request import Busy, Delta, Generation, Request
from ktransformers.runtime.session import SamplingOptions
from ktransformers.server.dialects import Dialect
from ktransformers.server.errors import ApiError
from ktransformers.server.templates import Templates

BACKLOG = 1024  # tokens a reader may be behind before its generation pauses


@dataclass
class Settings:
    """What the command line decided. sampling: where requests are silent; max_new_tokens: None for
    all the context has room for."""

    model_name: str
    sampling: SamplingOptions
    stop_ids: tuple[int, ...]
    max_new_tokens: int | None = None
    max_choices: int = 8
    force_think: bool = False


class Handle:
    """One generation's deltas, read on the event loop. Those that pile up come as one."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self._deltas: deque[Delta] = deque()
        self._ready = asyncio.Event()
        self._backlog = 0
        self.done = False

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._backlog += len(delta.tokens)
        if self._backlog > BACKLOG and not self.generation.paused:
            self.generation.pause(True)
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            while not self.done:
                await self._ready.wait()
                self._ready.clear()
                merged = merge(self._deltas)
                self._backlog = 0
                if self.generation.paused:
                    self.generation.pause(False)
                self.done = merged.finish is not None
                yield merged
        finally:
            if not self.done:
                self.generation.cancel()


def merge(deltas: deque[Delta]) -> Delta:
    """All of them as one; empties the queue."""
    whole = deltas.popleft()
    while deltas:
        delta = deltas.popleft()
        whole.text += delta.text
        whole.tokens += delta.tokens
        whole.logprobs += delta.logprobs
        whole.prompt_logprobs += delta.prompt_logprobs
        whole.finish, whole.error, whole.stop_text = delta.finish, delta.error, delta.stop_text
    return whole


@dataclass
class Service:
    """The state of one server. Made before the event loop runs; `open` ties it to the loop."""

    model: Any
    tokenizer: Any
    templates: Templates
    dialect: Dialect
    settings: Settings
    engine: BatchEngine = None
    grammars: Grammars = None
    started: float = field(default_factory=time.time)
    handles: dict[Generation, Handle] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop | None = None

    def __post_init__(self):
        self._decoder = StreamDecoder(self.tokenizer, skip_special_tokens=False)
        self._bytes: dict[int, bytes] = {}

    def open(self) -> None:
        """Called on the event loop, once. Starts the engine."""
        self.loop = asyncio.get_running_loop()
        self.engine.start()

    async def close(self) -> None:
        """Ends all generations; their readers are told."""
        await asyncio.to_thread(self.engine.close)
        self.templates.close()

    # ---- generations ----

    def deliver(self, ready: list[tuple[Generation, Delta]]) -> None:
        """The engine's outlet; called on its thread, once a step."""
        try:
            self.loop.call_soon_threadsafe(self._spread, ready)
        except RuntimeError:  # the loop is closed: nobody reads any more
            for generation, _ in ready:
                generation.cancelled = True

    def _spread(self, ready: list[tuple[Generation, Delta]]) -> None:
        for generation, delta in ready:
            handle = self.handles.get(generation)
            if handle is not None:
                handle.put(delta)
            if delta.finish is not None:
                self.handles.pop(generation, None)

    def submit(self, requests: list[Request]) -> list[Handle]:
        """Raises: ApiError for what cannot run, or not now."""
        try:
            generations = self.engine.submit(requests)
        except UserError as error:
            code = "context_length_exceeded" if "context" in str(error) else "invalid"
            raise ApiError(400, str(error), code=code) from error
        except Busy as busy:
            status = 503 if busy.closing else 429
            raise ApiError(status, str(busy), retry_after=busy.retry_after) from busy
        handles = [Handle(generation) for generation in generations]
        self.handles.update(zip(generations, handles, strict=True))
        return handles

    # ---- words and tokens ----

    @property
    def context(self) -> int:
        return self.engine.context

    def check_model(self, name: str | None) -> None:
        """Any name by which a client may mean the one model. Raises: ApiError for another."""
        if name is None or name in self.names():
            return
        raise ApiError(
            404, f"the model is not served here; this server has {self.settings.model_name}",
            "model", "model_not_found",
        )  # fmt: skip

    def names(self) -> set[str]:
        own = self.settings.model_name
        return {own, f"{own}:latest", "default", "default:latest"}

    @cached_property
    def digest(self) -> str:
        """A name for this very file: of what it is, not of all its bytes."""
        gguf = self.model.kt.gguf
        facts = [(name, info.shape, info.type) for name, info in sorted(gguf.tensors.items())]
        return hashlib.sha256(repr((self.settings.model_name, facts)).encode()).hexdigest()

    @cached_property
    def quantization(self) -> str:
        """The type most of the weights have."""
        sizes: dict[str, int] = {}
        for info in self.model.kt.gguf.tensors.values():
            sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
        return max(sizes, key=sizes.get).upper()

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text; special tokens as they are written."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._decoder.bytes_of(token)
        return known

    async def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; special: with the tokens the tokenizer puts around texts."""
        text = text.encode("utf-8", "replace").decode("utf-8")

        def work() -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=special, verbose=False)

        return work() if len(text) < 4096 else await asyncio.to_thread(work)

    async def matcher(self, kind: str, source: Any, seconds: float = 10.0) -> Any:
        """Raises: ApiError for a grammar that is refused or takes too long to build."""
        try:
            return await asyncio.wait_for(
                asyncio.to_thread(self.grammars.matcher, kind, source), seconds
            )
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_grammar") from error
        except TimeoutError:
            raise ApiError(400, f"{kind}: not built in {seconds:g} s; simplify it") from None

    def answer_room(self, prompt: int, asked: int | None) -> int:
        """Tokens an answer may have."""
        most = self.context - prompt
        if self.settings.max_new_tokens is not None:
            most = min(most, self.settings.max_new_tokens)
        return max(1, most) if asked is None else min(asked, max(1, most))


def build_service(
    model: Any, tokenizer: Any, templates: Templates, dialect: Dialect, settings: Settings,
    **engine_options: Any,
) -> Service:  # fmt: skip
    """A service with its engine. Raises: UserError."""
    service = Service(model, tokenizer, templates, dialect, settings)
    service.engine = BatchEngine(model, tokenizer, service.deliver, **engine_options)
    service.grammars = Grammars(tokenizer, model.kt.decoder.vocab_size, settings.stop_ids)
    return service
