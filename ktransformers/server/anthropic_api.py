"""The Anthropic API: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ktransformers.server import chat
from ktransformers.server.anthropic_types import (
    AnthropicMessage,
    CountRequest,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResult,
    ToolUse,
)
from ktransformers.server.chat import Answer, Ask, Piece
from ktransformers.server.dialects import Call
from ktransformers.server.documents import ANTHROPIC_ERRORS, streaming
from ktransformers.server.errors import ApiError
from ktransformers.server.service import Service
from ktransformers.server.sse import event, events, unless_gone


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1/messages", tags=["Anthropic"], responses=ANTHROPIC_ERRORS)

    @routes.post("", responses=streaming("text/event-stream"))
    async def messages(body: MessagesRequest, request: Request):
        """An answer to a conversation."""
        return await create(service, body, request)

    @routes.post("/count_tokens")
    async def count_tokens(body: CountRequest) -> dict[str, int]:
        """Tokens of the prompt that a conversation becomes."""
        service.check_model(body.model)
        prompt = await chat.render(service, ask_of(body))
        return {"input_tokens": len(prompt.ids)}

    return routes


def joined(content: str | list[TextBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(block.text for block in content)


def plain_messages(message: AnthropicMessage) -> list[dict[str, Any]]:
    """One message as templates read it; results of tools become messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results: list[dict[str, Any]] = []
    texts, thoughts, calls = [], [], []
    for block in message.content:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUse):
            if message.role != "assistant":
                raise ApiError(400, "messages: tool_use belongs to the assistant", "messages")
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResult):
            if message.role != "user":
                raise ApiError(400, "messages: tool_result belongs to the user", "messages")
            text = joined(block.content)
            results.append(
                {"role": "tool", "tool_call_id": block.tool_use_id, "content": text or "(nothing)"}
            )
    made: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    if texts or calls or thoughts or not results:
        results.append(made)
    return results


def ask_of(body: CountRequest) -> Ask:
    """The request in the shape all APIs share."""
    messages: list[dict[str, Any]] = []
    if system := joined(body.system):
        messages.append({"role": "system", "content": system})
    for message in body.messages:
        messages += plain_messages(message)
    choice = "auto"
    if body.tool_choice is not None:
        names = {"any": "required", "tool": body.tool_choice.name}
        choice = names.get(body.tool_choice.type, body.tool_choice.type)
        if choice is None:
            raise ApiError(400, "tool_choice.name: which tool?", "tool_choice")
        if choice not in ("auto", "none") and not body.tools:
            raise ApiError(400, "tool_choice needs tools", "tool_choice")
    ask = Ask(
        messages=messages, tools=[tool.plain() for tool in body.tools or ()], tool_choice=choice
    )
    if body.thinking is not None:
        ask.thinking = {"enabled": True, "disabled": False}.get(body.thinking.type)
    if body.output_config is not None:
        if body.output_config.format is not None:
            ask.grammar = ("json_schema", body.output_config.format.schema_)
        if body.output_config.effort is not None:
            ask.template_values["reasoning_effort"] = body.output_config.effort
    if isinstance(body, MessagesRequest):
        given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
        ask.sampling = {name: value for name, value in given.items() if value is not None}
        ask.max_tokens = body.max_tokens
        ask.stop = tuple(body.stop_sequences or ())
    return ask


def stop_reason(piece: Piece) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence)."""
    if piece.delta.stop_text is not None and piece.finish == "stop":
        return "stop_sequence", piece.delta.stop_text
    names = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    return names[piece.finish], None


def usage_json(answer: Answer) -> dict[str, Any]:
    cached = min(answer.cached_tokens, answer.prompt_tokens)
    return {
        "input_tokens": answer.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": answer.tokens,
    }


def tool_block(call: Call, inputs: Any) -> dict[str, Any]:
    return {
        "type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": call[0], "input": inputs
    }  # fmt: skip


async def create(service: Service, body: MessagesRequest, request: Request) -> Response:
    """Answers a conversation, whole or streamed. Raises: ApiError."""
    service.check_model(body.model)
    (answer,) = await unless_gone(request, chat.start(service, ask_of(body)))
    head = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": service.settings.model_name,
    }
    if body.stream:
        return events(streamed(answer, head), request.url.path, named=True)
    try:
        piece = await unless_gone(request, answer.whole())
    finally:
        answer.cancel()
    content: list[dict[str, Any]] = []
    if piece.thinking:
        content.append({"type": "thinking", "thinking": piece.thinking, "signature": ""})
    if piece.text:
        content.append({"type": "text", "text": piece.text})
    content += [tool_block(call, json.loads(call[1])) for call in piece.calls]
    reason, sequence = stop_reason(piece)
    return JSONResponse(
        head
        | {
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage_json(answer),
        }
    )


class Blocks:
    """Which content block is open, as events are made of it."""

    def __init__(self):
        self.index, self.kind = -1, None

    def open(self, kind: str, block: dict[str, Any]) -> bytes:
        """Opens a block, closing the one before."""
        closed = self.close()
        self.index, self.kind = self.index + 1, kind
        started = {"type": "content_block_start", "index": self.index, "content_block": block}
        return closed + event(started, "content_block_start")

    def close(self) -> bytes:
        if self.kind is None:
            return b""
        self.kind = None
        return event({"type": "content_block_stop", "index": self.index}, "content_block_stop")

    def add(self, delta: dict[str, Any]) -> bytes:
        made = {"type": "content_block_delta", "index": self.index, "delta": delta}
        return event(made, "content_block_delta")

    def piece(self, piece: Piece) -> bytes:
        """The events of what a piece brought."""
        out = b""
        if piece.thinking:
            if self.kind != "thinking":
                out += self.open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            out += self.add({"type": "thinking_delta", "thinking": piece.thinking})
        if piece.text:
            if self.kind != "text":
                out += self.open("text", {"type": "text", "text": ""})
            out += self.add({"type": "text_delta", "text": piece.text})
        for call in piece.calls:
            out += self.open("tool_use", tool_block(call, {}))
            out += self.add({"type": "input_json_delta", "partial_json": call[1]})
        return out


async def streamed(answer: Answer, head: dict[str, Any]) -> AsyncIterator[bytes]:
    """The events of an answer as it comes."""
    empty = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage_json(answer)}
    blocks = Blocks()
    try:
        yield event({"type": "message_start", "message": head | empty}, "message_start")
        last = Piece(finish="stop")
        async for piece in answer:
            if events_made := blocks.piece(piece):
                yield events_made
            if piece.finish:
                last = piece
        if closed := blocks.close():
            yield closed
        reason, sequence = stop_reason(last)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield event(
            {"type": "message_delta", "delta": delta, "usage": usage_json(answer)}, "message_delta"
        )
        yield event({"type": "message_stop"}, "message_stop")
    finally:
        answer.cancel()
