"""/v1/completions: texts or ids continued, with echo and log-probabilities."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ktransformers.runtime.engine_request import Request as EngineRequest
from ktransformers.server.chat import Answer, Ask, request_for
from ktransformers.server.dialects import HERMES
from ktransformers.server.errors import ApiError
from ktransformers.server.fields import stop_texts
from ktransformers.server.openai_chat import interleaved, timings_json
from ktransformers.server.openai_types import CompletionRequest
from ktransformers.server.parser import AnswerParser, Part
from ktransformers.server.service import Service
from ktransformers.server.sse import event, events, unless_gone

DEFAULT_TOKENS = 16  # OpenAI's, where a request names no limit


class PlainText(AnswerParser):
    """Takes nothing apart."""

    def push(self, piece: str) -> Part:
        return Part(text=piece)

    def finish(self) -> Part:
        return Part()


async def start(service: Service, body: CompletionRequest) -> list[Answer]:
    """Queues the choices of all prompts, those of one prompt together. Raises: ApiError."""
    prompts = body.prompts()
    count = body.n or 1
    if count > service.settings.max_choices:
        raise ApiError(400, f"n: at most {service.settings.max_choices} choices", "n")
    grammar = body.response_format.plain() if body.response_format else None
    limit = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    answers: list[Answer] = []
    try:
        for prompt in prompts:
            ids = await service.encode(prompt, special=True) if isinstance(prompt, str) else prompt
            if not ids and (begin := service.tokenizer.bos_token_id) is not None:
                ids = [begin]
            requests = []
            for number in range(count):
                matcher = await service.matcher(*grammar) if grammar else None
                requests.append(engine_request(service, body, ids, number, limit, matcher))
            for handle in service.submit(requests):
                answers.append(Answer(handle, PlainText(HERMES), len(ids)))
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    return answers


def engine_request(
    service: Service, body: CompletionRequest, ids: list[int], number: int, limit: int, matcher: Any
) -> EngineRequest:
    ask = Ask(
        sampling=body.sampling(), max_tokens=limit, stop=stop_texts(body.stop),
        top_logprobs=body.logprobs, logit_bias=body.biases(), min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
    )  # fmt: skip
    request = request_for(service, ask, ids, number, matcher)
    request.keep_special = frozenset()
    if body.echo and body.logprobs is not None:
        request.prompt_logprobs = body.logprobs
    return request


async def complete(service: Service, body: CompletionRequest, request: Request) -> Response:
    """Continues the prompts, whole or streamed. Raises: ApiError."""
    service.check_model(body.model)
    answers = await unless_gone(request, start(service, body))
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.settings.model_name,
    }
    if body.stream:
        return events(streamed(service, body, answers, head), request.url.path)
    try:
        choices = await unless_gone(
            request,
            asyncio.gather(*(choice(service, body, i, a) for i, a in enumerate(answers))),
        )
    finally:
        for answer in answers:
            answer.cancel()
    answer = head | {"choices": choices, "usage": usage(body, answers)}
    if body.return_speed:
        answer["timings"] = timings_json(answers)
    return JSONResponse(answer)


def usage(body: CompletionRequest, answers: list[Answer]) -> dict[str, Any]:
    prompt = sum(answer.prompt_tokens for answer in answers[:: body.n or 1])
    cached = sum(answer.cached_tokens for answer in answers[:: body.n or 1])
    completion = sum(answer.tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def choice(
    service: Service, body: CompletionRequest, index: int, answer: Answer
) -> dict[str, Any]:
    text, tokens, told, prompt_told, finish = "", [], [], [], None
    async for piece in answer:
        text += piece.text
        tokens += piece.delta.tokens
        told += piece.delta.logprobs
        prompt_told += piece.delta.prompt_logprobs
        finish = piece.finish or finish
    logprobs = None
    prompt = answer.handle.generation.request.prompt
    if body.echo:
        text = service.tokenizer.decode(prompt) + text
    if body.logprobs is not None:
        rows = list(told)
        if body.echo:
            first = (prompt[0], None, None)  # nothing stands before it to tell how likely it is
            rows = [first, *prompt_told, *told]
        logprobs = logprobs_json(service, rows)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def logprobs_json(service: Service, rows: list, at: int = 0) -> dict[str, Any]:
    """OpenAI's older form: four lists, one entry per token. at: where their text begins."""
    tokens, logprobs, top, offsets = [], [], [], []
    for token, logprob, alternatives in rows:
        text = service.token_bytes(token).decode("utf-8", "replace")
        tokens.append(text)
        offsets.append(at)
        at += len(text)
        logprobs.append(logprob)
        named = None
        if alternatives is not None:
            named = {}
            for other, value in alternatives:
                named.setdefault(service.token_bytes(other).decode("utf-8", "replace"), value)
            named.setdefault(text, logprob)
        top.append(named)
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": top,
        "text_offset": offsets,
    }


async def streamed(
    service: Service, body: CompletionRequest, answers: list[Answer], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    wants_usage = bool(body.stream_options and body.stream_options.include_usage)
    told = {"usage": None} if wants_usage else {}
    ends = [0] * len(answers)  # of the text told so far, by its tokens
    try:
        async for index, piece in interleaved(answers):
            logprobs = None
            if body.logprobs is not None and piece.delta.logprobs:
                logprobs = logprobs_json(service, piece.delta.logprobs, ends[index])
                ends[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
            made = {
                "index": index,
                "text": piece.text,
                "logprobs": logprobs,
                "finish_reason": piece.finish,
            }
            yield event(head | {"choices": [made]} | told)
        if wants_usage:
            yield event(head | {"choices": [], "usage": usage(body, answers)})
        yield b"data: [DONE]\n\n"
    finally:
        for answer in answers:
            answer.cancel()
