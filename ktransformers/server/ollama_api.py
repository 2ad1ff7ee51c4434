"""The Ollama API: chat, generate, tags, show, ps, version."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ktransformers.server import chat
from ktransformers.server.chat import Answer, Ask, Piece, Prompt
from ktransformers.server.dialects import HERMES
from ktransformers.server.documents import OLLAMA_ERRORS, streaming
from ktransformers.server.errors import ApiError
from ktransformers.server.ollama_types import Common, OllamaChat, OllamaGenerate, ShowRequest
from ktransformers.server.openai_completions import PlainText
from ktransformers.server.service import Service
from ktransformers.server.sse import line, lines, unless_gone

VERSION = "0.12.0"  # of the API this speaks; clients look for a number they know


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/api", tags=["Ollama"], responses=OLLAMA_ERRORS)

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """The version of the API."""
        return {"version": VERSION}

    @routes.get("/tags")
    async def tags() -> dict[str, Any]:
        """The model this server has."""
        return {"models": [model_json(service)]}

    @routes.get("/ps")
    async def ps() -> dict[str, Any]:
        """The model, as it is loaded."""
        running = {
            "expires_at": "9999-12-31T23:59:59Z",  # it stays as long as the server runs
            "size_vram": 0,
            "context_length": service.context,
        }
        return {"models": [model_json(service) | running]}

    @routes.post("/show")
    async def show(body: ShowRequest) -> dict[str, Any]:
        """What is known of the model."""
        name = body.model or body.name
        if name is None:
            raise ApiError(400, "model: which one?")
        service.check_model(name)
        return show_json(service)

    @routes.post("/chat", responses=streaming("application/x-ndjson"))
    async def ollama_chat(body: OllamaChat, request: Request):
        """An answer to a conversation."""
        service.check_model(body.model)
        if not body.messages:
            return JSONResponse(nothing_asked(service, {"message": message_json(Piece())}))
        return await respond(service, body, request, chat_ask(body), None, "message")

    @routes.post("/generate", responses=streaming("application/x-ndjson"))
    async def generate(body: OllamaGenerate, request: Request):
        """An answer to one prompt, or (raw) a text continued."""
        service.check_model(body.model)
        if not body.prompt:
            return JSONResponse(nothing_asked(service, {"response": ""}))
        prompt = None
        if body.raw:
            prompt = Prompt(await service.encode(body.prompt, special=True), body.prompt, False)
        return await respond(service, body, request, generate_ask(body), prompt, "response")

    return routes


def model_json(service: Service) -> dict[str, Any]:
    name = service.settings.model_name
    kt = service.model.kt
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(service.started, UTC).isoformat(),
        "size": sum(kt.plan.device_bytes().values()),
        "digest": service.digest,
        "details": details(service),
    }


def details(service: Service) -> dict[str, Any]:
    metadata = service.model.kt.gguf.metadata
    family = str(metadata.get("general.architecture", ""))
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": str(metadata.get("general.size_label", "")),
        "quantization_level": service.quantization,
    }


def show_json(service: Service) -> dict[str, Any]:
    """Without the vocabulary: only values that are short."""
    metadata = service.model.kt.gguf.metadata
    info = {
        key: value
        for key, value in metadata.items()
        if isinstance(value, (bool, int, float, str)) and not key.endswith("chat_template")
    }
    template = service.templates.sources["default"]
    capabilities = ["completion", "tools"]
    if service.dialect.think[0] in template or "enable_thinking" in template:
        capabilities.append("thinking")
    return {
        "modelfile": "",
        "parameters": "",
        "template": template,
        "details": details(service),
        "model_info": {k: v if not isinstance(v, str) else v[:1000] for k, v in info.items()},
        "capabilities": capabilities,
        "modified_at": datetime.fromtimestamp(service.started, UTC).isoformat(),
    }


def check_context(service: Service, body: Common) -> None:
    asked = body.options.num_ctx if body.options else None
    if asked is not None and asked > service.context:
        raise ApiError(400, f"options.num_ctx: this server's context is {service.context}")


def common_ask(body: Common) -> Ask:
    ask = Ask(grammar=body.grammar(), stop=body.stops())
    if body.options:
        ask.sampling, ask.max_tokens = body.options.sampling(), body.options.limit()
    if body.think is not None:
        ask.thinking = bool(body.think)
        if isinstance(body.think, str):
            ask.template_values["reasoning_effort"] = body.think
    if body.logprobs or body.top_logprobs:
        ask.top_logprobs = body.top_logprobs or 0
    return ask


def chat_ask(body: OllamaChat) -> Ask:
    ask = common_ask(body)
    ask.messages = [message.plain() for message in body.messages]
    ask.tools = [tool.plain() for tool in body.tools or ()]
    return ask


def generate_ask(body: OllamaGenerate) -> Ask:
    ask = common_ask(body)
    if body.system:
        ask.messages.append({"role": "system", "content": body.system})
    ask.messages.append({"role": "user", "content": body.prompt})
    return ask


def stamp(service: Service) -> dict[str, Any]:
    return {"model": service.settings.model_name, "created_at": datetime.now(UTC).isoformat()}


def nothing_asked(service: Service, said: dict[str, Any]) -> dict[str, Any]:
    """What clients send to load a model, or to let it go: it stays loaded."""
    return stamp(service) | said | {"done": True, "done_reason": "load"}


def message_json(piece: Piece) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": piece.text}
    if piece.thinking:
        message["thinking"] = piece.thinking
    if piece.calls:
        message["tool_calls"] = [
            {"function": {"name": name, "arguments": json.loads(arguments)}}
            for name, arguments in piece.calls
        ]
    return message


def said(field: str, piece: Piece) -> dict[str, Any]:
    if field == "message":
        return {"message": message_json(piece)}
    made = {"response": piece.text}
    return made | {"thinking": piece.thinking} if piece.thinking else made


def logprobs_json(service: Service, told: list) -> list[dict[str, Any]]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        raw = service.token_bytes(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    return [
        one(token, logprob) | {"top_logprobs": [one(*pair) for pair in top]}
        for token, logprob, top in told
    ]


def closing(answer: Answer, finish: str | None) -> dict[str, Any]:
    """Durations in nanoseconds."""
    times = answer.handle.generation.times

    def spent(begin: float, end: float) -> int:
        return max(0, int((end - begin) * 1e9)) if begin and end else 0

    return {
        "done": True,
        "done_reason": "length" if finish == "length" else "stop",
        "total_duration": spent(times.queued, times.finished or time.monotonic()),
        "load_duration": 0,
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": spent(times.admitted, times.first_token),
        "eval_count": answer.tokens,
        "eval_duration": spent(times.first_token, times.finished),
    }


async def respond(
    service: Service, body: Common, request: Request, ask: Ask, prompt: Prompt | None, field: str
) -> Response:
    """Answers, as lines or whole. Raises: ApiError."""
    check_context(service, body)
    (answer,) = await unless_gone(request, chat.start(service, ask, prompt))
    if prompt is not None:  # raw: nothing is taken apart
        answer.parser = PlainText(HERMES)
    wanted = ask.top_logprobs is not None
    if body.stream:
        return lines(streamed(service, answer, field, wanted))
    try:
        piece = await unless_gone(request, answer.whole())
    finally:
        answer.cancel()
    made = stamp(service) | said(field, piece) | closing(answer, piece.finish)
    if wanted:
        made["logprobs"] = logprobs_json(service, piece.delta.logprobs)
    return JSONResponse(made)


async def streamed(
    service: Service, answer: Answer, field: str, logprobs: bool
) -> AsyncIterator[bytes]:
    finish = None
    try:
        async for piece in answer:
            finish = piece.finish or finish
            made = stamp(service) | said(field, piece) | {"done": False}
            if logprobs and piece.delta.logprobs:
                made["logprobs"] = logprobs_json(service, piece.delta.logprobs)
            yield line(made)
        yield line(stamp(service) | said(field, Piece()) | closing(answer, finish))
    finally:
        answer.cancel()
