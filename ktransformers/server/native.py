"""This server's own routes: health, metrics, properties, placement, tokens, templates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import JSONResponse, PlainTextResponse

from ktransformers import __version__
from ktransformers.server import chat
from ktransformers.server.documents import OPENAI_ERRORS
from ktransformers.server.errors import ApiError
from ktransformers.server.fields import COUNT, OBJECT, TEXT, TOOLS, Body
from ktransformers.server.metrics import exposition
from ktransformers.server.openai_types import Message
from ktransformers.server.placement import placement_json
from ktransformers.server.service import Service


class TokenizeRequest(Body):
    """content: a text; add_special: with the tokens the tokenizer puts around texts."""

    content: TEXT
    add_special: bool = False
    with_pieces: bool = False


class DetokenizeRequest(Body):
    tokens: Annotated[list[COUNT], Field(max_length=1 << 20)]


class TemplateRequest(Body):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    tools: TOOLS | None = None
    chat_template_kwargs: Annotated[OBJECT, Field(max_length=32)] | None = None


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["native"], responses=OPENAI_ERRORS)

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the engine runs, and how busy it is."""
        engine = service.engine
        if not engine.alive:
            raise ApiError(503, "the engine is not running", retry_after=5)
        return {"status": "ok", "running": len(engine.running), "waiting": engine.queued}

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Figures in Prometheus' text format."""
        return PlainTextResponse(exposition(service), media_type="text/plain; version=0.0.4")

    @routes.get("/props")
    async def props() -> dict[str, Any]:
        """The model, the context, sampling where requests are silent, and the live queue."""
        return props_json(service)

    @routes.get("/placement")
    async def placement() -> JSONResponse:
        """The plan: which operator each module got, on which device, by which rule, and why."""
        return JSONResponse(placement_json(service))

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """A text's token ids."""
        ids = await service.encode(body.content, body.add_special)
        if not body.with_pieces:
            return {"tokens": ids}
        pieces = [service.token_bytes(i).decode("utf-8", "replace") for i in ids]
        return {"tokens": [{"id": i, "piece": p} for i, p in zip(ids, pieces, strict=True)]}

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        """The text of token ids."""
        size = len(service.tokenizer)
        if any(token >= size for token in body.tokens):
            raise ApiError(400, f"tokens: ids are below {size}", "tokens")
        text = service.tokenizer.decode(body.tokens, skip_special_tokens=False)
        return {"content": text}

    @routes.post("/apply-template")
    async def apply_template(body: TemplateRequest) -> dict[str, Any]:
        """The prompt that a conversation becomes."""
        ask = chat.Ask(
            messages=[message.plain() for message in body.messages],
            tools=[tool.plain() for tool in body.tools or ()],
            template_values=dict(body.chat_template_kwargs or {}),
        )
        prompt = await chat.render(service, ask)
        text = prompt.text.encode("utf-8", "replace").decode("utf-8")
        return {"prompt": text, "tokens": len(prompt.ids)}

    return routes


def props_json(service: Service) -> dict[str, Any]:
    engine, kt = service.engine, service.model.kt
    sampling = service.settings.sampling
    template = service.templates.sources["default"]
    names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty",
             "frequency_penalty")  # fmt: skip
    return {
        "version": __version__,
        "model": service.settings.model_name,
        "model_file": Path(str(kt.gguf.path)).name,
        "architecture": kt.gguf.metadata.get("general.architecture"),
        "description": kt.describe(),
        "context": service.context,
        "max_batch_size": engine.max_batch,
        "max_queue": engine.max_queue,
        "vocab_size": kt.decoder.vocab_size,
        "weights_bytes": sum(kt.plan.device_bytes().values()),
        "default_sampling": {name: getattr(sampling, name) for name in names},
        "max_new_tokens": service.settings.max_new_tokens,
        "dialect": service.dialect.name,
        "supports": {
            "tools": True,
            "thinking": service.dialect.think[0] in template or "enable_thinking" in template,
            "thinking_switch": "enable_thinking" in template or "thinking" in template,
            "grammar": True,
        },
        "live": live_json(service),
        "uptime_seconds": round(time.time() - service.started, 3),
    }


def live_json(service: Service) -> dict[str, Any]:
    """The queue and the cache now; generations without their words."""
    engine, now = service.engine, time.monotonic()
    rows = []
    for one in list(engine.running) + list(engine.waiting):
        times = one.times
        spent = now - times.first_token if times.first_token else 0.0
        rows.append({
            "id": one.number,
            "state": "waiting" if not times.admitted else "prompt" if one.in_prompt else "answer",
            "prompt_tokens": one.stream.prompt_length,
            "prompt_left": max(0, one.stream.pending) if one.in_prompt else 0,
            "cached_tokens": one.cached_tokens,
            "generated_tokens": one.produced,
            "tokens_per_second": round((one.produced - 1) / spent, 2) if spent > 0 else None,
            "seconds": round(now - times.queued, 3),
        })  # fmt: skip
    pool = engine.pool
    return {
        "running": len(engine.running),
        "waiting": engine.queued,
        "cache_pages": pool.page_limit,
        "cache_pages_used": pool.pages_in_use,
        "cache_pages_kept": engine.cache.pages if engine.cache else 0,
        "page_positions": 64,
        "generations": rows,
    }
