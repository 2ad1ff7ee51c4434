"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ktransformers.server import chat
from ktransformers.server.chat import Answer, Ask, Piece
from ktransformers.server.dialects import Call
from ktransformers.server.errors import ApiError
from ktransformers.server.fields import stop_texts
from ktransformers.server.openai_types import ChatRequest, NamedChoice
from ktransformers.server.service import Service
from ktransformers.server.sse import event, events, unless_gone


def ask_of(body: ChatRequest) -> Ask:
    """The request in the shape all APIs share."""
    choice = body.tool_choice or "auto"
    if isinstance(choice, NamedChoice):
        choice = choice.function.name
    thinking, values = None, dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        thinking = body.reasoning_effort != "none"
        values.setdefault("reasoning_effort", body.reasoning_effort)
    limit = body.max_completion_tokens
    limit = limit if limit is not None else body.max_tokens
    if limit == 0:
        raise ApiError(400, "max_tokens: at least 1", "max_tokens")
    return Ask(
        messages=[message.plain() for message in body.messages],
        tools=[tool.plain() for tool in body.tools or ()],
        tool_choice=choice,
        grammar=body.response_format.plain() if body.response_format else None,
        sampling=body.sampling(),
        max_tokens=limit,
        stop=stop_texts(body.stop),
        choices=body.n or 1,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        logit_bias=body.biases(),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        thinking=thinking,
        template_values=values,
    )


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def call_json(call: Call, index: int | None = None) -> dict[str, Any]:
    made = {
        "id": call_id(),
        "type": "function",
        "function": {"name": call[0], "arguments": call[1]},
    }
    return made if index is None else {"index": index} | made


def logprobs_json(service: Service, told: list) -> dict[str, Any]:
    """OpenAI's logprobs of a choice: each token's text, bytes and alternatives."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(service, token)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}

    content = []
    for token, logprob, top in told:
        content.append(one(token, logprob) | {"top_logprobs": [one(*pair) for pair in top]})
    return {"content": content, "refusal": None}


def token_bytes(service: Service, token: int) -> bytes:
    """What one token adds to a text; special tokens as they are written."""
    return service.token_bytes(token)


def usage_json(answers: list[Answer]) -> dict[str, Any]:
    prompt = answers[0].prompt_tokens
    completion = sum(answer.tokens for answer in answers)
    cached = min(prompt, answers[0].cached_tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timings_json(answers: list[Answer]) -> dict[str, Any]:
    """Seconds and speeds of an answer (return_speed)."""
    times = answers[0].handle.generation.times
    prompt = max(times.first_token - times.admitted, 1e-9)
    evaluated = answers[0].prompt_tokens - answers[0].cached_tokens
    spent = max(times.finished - times.first_token, 1e-9)
    tokens = answers[0].tokens
    return {
        "queue_seconds": times.admitted - times.queued,
        "prompt_tokens_evaluated": evaluated,
        "prompt_seconds": prompt,
        "prompt_tokens_per_second": evaluated / prompt,
        "predicted_seconds": spent,
        "predicted_tokens_per_second": max(tokens - 1, 0) / spent,
    }


async def complete(service: Service, body: ChatRequest, request: Request) -> Response:
    """Answers a chat, whole or streamed. Raises: ApiError."""
    service.check_model(body.model)
    answers = await unless_gone(request, chat.start(service, ask_of(body)))
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.settings.model_name,
    }
    if body.stream:
        return events(streamed(service, body, answers, head), request.url.path)
    try:
        pieces = await unless_gone(request, asyncio.gather(*(a.whole() for a in answers)))
    finally:
        for answer in answers:
            answer.cancel()
    choices = [
        {
            "index": index,
            "message": message_json(piece),
            "logprobs": logprobs_json(service, piece.delta.logprobs) if body.logprobs else None,
            "finish_reason": piece.finish,
        }
        for index, piece in enumerate(pieces)
    ]
    answer = head | {"object": "chat.completion", "choices": choices, "usage": usage_json(answers)}
    if body.return_speed:
        answer["timings"] = timings_json(answers)
    return JSONResponse(answer)


def message_json(piece: Piece) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": piece.text or None}
    if not piece.calls:
        message["content"] = piece.text
    if piece.thinking:
        message["reasoning_content"] = piece.thinking
    if piece.calls:
        message["tool_calls"] = [call_json(call) for call in piece.calls]
    return message


async def streamed(
    service: Service, body: ChatRequest, answers: list[Answer], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    """The chunks of all choices as they come."""
    head = head | {"object": "chat.completion.chunk"}
    usage = bool(body.stream_options and body.stream_options.include_usage)
    told = {"usage": None} if usage else {}

    def chunk(index: int, delta: dict, finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return event(head | {"choices": [choice]} | told)

    try:
        for index in range(len(answers)):
            yield chunk(index, {"role": "assistant", "content": ""})
        counts = [0] * len(answers)
        async for index, piece in interleaved(answers):
            delta: dict[str, Any] = {}
            if piece.thinking:
                delta["reasoning_content"] = piece.thinking
            if piece.text:
                delta["content"] = piece.text
            if piece.calls:
                delta["tool_calls"] = [
                    call_json(call, counts[index] + i) for i, call in enumerate(piece.calls)
                ]
                counts[index] += len(piece.calls)
            logprobs = None
            if body.logprobs and piece.delta.logprobs:
                logprobs = logprobs_json(service, piece.delta.logprobs)
            if delta or logprobs:
                yield chunk(index, delta, None, logprobs)
            if piece.finish:
                yield chunk(index, {}, piece.finish)
        if usage:
            last = head | {"choices": [], "usage": usage_json(answers)}
            if body.return_speed:
                last["timings"] = timings_json(answers)
            yield event(last)
        yield b"data: [DONE]\n\n"
    finally:
        for answer in answers:
            answer.cancel()


async def interleaved(answers: list[Answer]) -> AsyncIterator[tuple[int, Piece]]:
    """(choice, piece) of several answers in the order they come."""
    if len(answers) == 1:
        async for piece in answers[0]:
            yield 0, piece
        return
    sources = [aiter(answer) for answer in answers]
    tasks = {asyncio.ensure_future(anext(s)): i for i, s in enumerate(sources)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = tasks.pop(task)
                try:
                    piece = task.result()
                except StopAsyncIteration:
                    continue
                yield index, piece
                tasks[asyncio.ensure_future(anext(sources[index]))] = index
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
