"""Streams of events and lines that end when their reader does, and speak while the model thinks."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ktransformers.server.errors import ApiError, api_of, body_of

log = logging.getLogger("ktransformers.server")

PING_SECONDS = 15.0
WRITE_SECONDS = 60.0  # a reader that takes nothing for so long is gone


def dumps(value: Any) -> str:
    """Compact JSON that is always valid UTF-8."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def event(value: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {dumps(value)}\n\n".encode()


def line(value: Any) -> bytes:
    """One line of JSON."""
    return dumps(value).encode() + b"\n"


class Streamed(StreamingResponse):
    """A body made by an async generator of bytes. What can be wrong with a request was said before;
    a generation that fails later ends the body with on_error's part. ping: sent while there is
    nothing else."""

    def __init__(
        self, parts: AsyncIterator[bytes], media_type: str, ping: bytes | None,
        on_error: Callable[[ApiError], bytes],
    ):  # fmt: skip
        super().__init__(parts, media_type=media_type, headers={"Cache-Control": "no-store"})
        self._parts, self._ping, self._on_error = parts, ping, on_error

    async def stream_response(self, send: Any) -> None:
        self._send = send
        pings = asyncio.ensure_future(self._pings()) if self._ping else None
        head = {"type": "http.response.start", "status": self.status_code}
        try:
            await self._write(head | {"headers": self.raw_headers})
            try:
                async for part in self._parts:
                    await self._write(body_part(part))
            except ApiError as error:
                await self._write(body_part(self._on_error(error)))
            await self._write(body_part(b"", more=False))
        except TimeoutError:
            log.info("a reader took nothing for %g s", WRITE_SECONDS)
        finally:
            if pings is not None:
                pings.cancel()
                await asyncio.gather(pings, return_exceptions=True)
            await self._parts.aclose()

    async def _write(self, message: dict) -> None:
        async with asyncio.timeout(WRITE_SECONDS):
            await self._send(message)
        self._last = time.monotonic()

    async def _pings(self) -> None:
        """Speaks whenever nothing was written for PING_SECONDS."""
        self._last = time.monotonic()
        while True:
            wait = self._last + PING_SECONDS - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self._write(body_part(self._ping))


def body_part(part: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": part, "more_body": more}


def events(parts: AsyncIterator[bytes], path: str, named: bool = False) -> Response:
    """Server-sent events. named: errors are events of the name "error", as Anthropic has them."""
    api = api_of(path)

    def on_error(error: ApiError) -> bytes:
        return event(body_of(api, error), "error" if named else None)

    ping = b'event: ping\ndata: {"type":"ping"}\n\n' if named else b": ping\n\n"
    return Streamed(parts, "text/event-stream", ping, on_error)


def lines(parts: AsyncIterator[bytes]) -> Response:
    """Newline-delimited JSON, as Ollama has it."""
    return Streamed(
        parts, "application/x-ndjson", None, lambda error: line(body_of("ollama", error))
    )


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled when the client goes away before it is done."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise ApiError(400, "the client closed the connection")  # nobody reads it
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(gone, task, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
