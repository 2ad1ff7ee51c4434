"""Streams of events and lines that end when their reader does, and speak while the model thinks."""

from __future__ import annotations

import asyncio
import json
import logging
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
        async def write(message: dict) -> None:
            await asyncio.wait_for(send(message), WRITE_SECONDS)

        await write(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        source = aiter(self._parts)
        coming: asyncio.Task | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(source))
                done, _ = await asyncio.wait([coming], timeout=PING_SECONDS)
                if not done:
                    if self._ping:
                        await write(
                            {"type": "http.response.body", "body": self._ping, "more_body": True}
                        )
                    continue
                try:
                    part = coming.result()
                except StopAsyncIteration:
                    break
                except ApiError as error:
                    part = self._on_error(error)
                    await write({"type": "http.response.body", "body": part, "more_body": True})
                    break
                coming = None
                await write({"type": "http.response.body", "body": part, "more_body": True})
            await write({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.info("a reader took nothing for %g s", WRITE_SECONDS)
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            await self._parts.aclose()


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
