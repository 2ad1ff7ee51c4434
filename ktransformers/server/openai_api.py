"""The OpenAI API's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from ktransformers.server import openai_chat, openai_completions
from ktransformers.server.documents import OPENAI_ERRORS, streaming
from ktransformers.server.errors import ApiError
from ktransformers.server.openai_types import ChatRequest, CompletionRequest
from ktransformers.server.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=OPENAI_ERRORS)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """The model this server has."""
        return {"object": "list", "data": [model_json(service)]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The same by its name."""
        if name not in service.names():
            raise ApiError(404, "no model of that name is served here", "model", "model_not_found")
        return model_json(service)

    @routes.post("/chat/completions", responses=streaming("text/event-stream"))
    async def chat_completions(body: ChatRequest, request: Request):
        """An answer to a conversation."""
        return await openai_chat.complete(service, body, request)

    @routes.post("/completions", responses=streaming("text/event-stream"))
    async def completions(body: CompletionRequest, request: Request):
        """A text continued."""
        return await openai_completions.complete(service, body, request)

    return routes


def model_json(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "ktransformers",
        "max_model_len": service.context,
    }
