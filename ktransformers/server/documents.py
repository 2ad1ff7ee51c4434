"""What the OpenAPI document says of responses, by API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class OpenAIErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    error: OpenAIErrorBody


class AnthropicErrorBody(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    type: str
    error: AnthropicErrorBody


class OllamaError(BaseModel):
    error: str


def errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {
        "4XX": {"model": model, "description": "What is wrong with the request"},
        "503": {"model": model, "description": "Loading or shutting down; see Retry-After"},
    }


OPENAI_ERRORS = errors(OpenAIError)
ANTHROPIC_ERRORS = errors(AnthropicError)
OLLAMA_ERRORS = errors(OllamaError)


def streaming(media_type: str) -> dict[int | str, dict[str, Any]]:
    """A 200 that is JSON, or a stream where the request asks for one."""
    return {
        200: {
            "description": "The answer; a stream where the request asks for one",
            "content": {"application/json": {"schema": {"type": "object"}}, media_type: {}},
        }
    }
