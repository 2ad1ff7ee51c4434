"""A chat in no API's words: messages in; thinking, text and calls out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ktransformers.errors import UserError
from ktransformers.runtime.engine_request import Delta, Request
from ktransformers.server.dialects import Call
from ktransformers.server.errors import ApiError
from ktransformers.server.parser import AnswerParser, in_thinking
from ktransformers.server.service import Handle, Service

# What a request may hand to the model's template beside messages and tools.
TEMPLATE_NAMES = frozenset(
    {"enable_thinking", "thinking", "reasoning_effort", "preserve_thinking", "clear_thinking",
     "add_generation_prompt", "continue_final_message", "documents", "date_string",
     "thinking_budget", "builtin_tools", "custom_tools", "tools_in_user_message"}
)  # fmt: skip


@dataclass
class Ask:
    """A request for an answer, checked and in one shape.

    messages: as templates read them. tools: [{"type": "function", "function": {...}}].
    tool_choice: "auto", "none", "required" or a tool's name. grammar: (kind, source) or None.
    sampling: fields that differ from the server's defaults. thinking: None leaves it to the model.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"
    grammar: tuple[str, Any] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    top_logprobs: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    thinking: bool | None = None
    template_values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prompt:
    """ids and text of a rendered chat; thinking: the model goes on inside of thinking."""

    ids: list[int]
    text: str
    thinking: bool


@dataclass
class Piece:
    """What one read of an answer brought; fields as in Delta and Part."""

    thinking: str = ""
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    delta: Delta = field(default_factory=Delta)
    finish: str | None = None  # "stop", "length", "tool_calls", "cancelled", "error"


class Answer:
    """One choice. Iterate once; afterwards the counts are those of the whole answer."""

    def __init__(self, handle: Handle, parser: AnswerParser, prompt_tokens: int, opening: str = ""):
        self.handle, self.parser = handle, parser
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self.called = False
        self._opening = opening  # text that stands before what the model says

    def cancel(self) -> None:
        """Ends the generation, if it is not over."""
        self.handle.generation.cancel()

    @property
    def cached_tokens(self) -> int:
        return self.handle.generation.cached_tokens

    async def __aiter__(self) -> AsyncIterator[Piece]:
        text = self._opening
        async for delta in self.handle:
            self.tokens += len(delta.tokens)
            part = self.parser.push(text + delta.text)
            text = ""
            if delta.finish is not None:
                rest = self.parser.finish()
                part.thinking += rest.thinking
                part.text += rest.text
                part.calls += rest.calls
            self.called |= bool(part.calls)
            finish = delta.finish
            if finish == "error":
                raise ApiError(500, f"the generation failed: {delta.error}")
            if finish == "refused":
                raise ApiError(400, delta.error, "response_format", "invalid_grammar")
            if finish == "cancelled":
                raise ApiError(503, "the server ended this generation", retry_after=5)
            if finish == "stop" and self.called:
                finish = "tool_calls"
            if part or finish or delta.logprobs:
                yield Piece(part.thinking, part.text, part.calls, delta, finish)

    async def whole(self) -> Piece:
        """All pieces as one."""
        whole = Piece()
        async for piece in self:
            whole.thinking += piece.thinking
            whole.text += piece.text
            whole.calls += piece.calls
            whole.finish = piece.finish or whole.finish
            whole.delta.logprobs += piece.delta.logprobs
            whole.delta.tokens += piece.delta.tokens
            whole.delta.stop_text = piece.delta.stop_text or whole.delta.stop_text
        return whole


async def render(service: Service, ask: Ask) -> Prompt:
    """The prompt of a chat. Raises: ApiError when the template refuses it."""
    unknown = sorted(set(ask.template_values) - TEMPLATE_NAMES)
    if unknown:
        raise ApiError(
            400, f"chat_template_kwargs.{unknown[0]}: not supported by this server",
            "chat_template_kwargs", "unsupported",
        )  # fmt: skip
    values = dict(ask.template_values)
    if ask.thinking is not None:
        values |= {"enable_thinking": ask.thinking, "thinking": ask.thinking}
    values.setdefault("add_generation_prompt", True)
    tools = ask.tools if ask.tool_choice != "none" else []
    name = "default"
    if tools and "tool_use" in service.templates.sources:
        name = "tool_use"
    if tools:
        values["tools"] = tools
        if "tools" not in service.templates.sources[name]:
            ask = dataclasses.replace(ask, messages=tools_told(ask.messages, tools))
    try:
        text = await asyncio.to_thread(service.templates.render, ask.messages, name, **values)
    except UserError as error:
        raise ApiError(400, str(error), "messages", "template") from error
    thinks = in_thinking(text, service.dialect)
    if service.settings.force_think and not thinks and ask.thinking is not False:
        text += service.dialect.think[0] + "\n"
        thinks = True
    return Prompt(await service.encode(text), text, thinks)


def tools_told(messages: list[dict], tools: list[dict]) -> list[dict]:
    """Messages for a template that knows no tools: a system message describes them."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = (
        "You may call these functions:\n<tools>\n" + listed + "\n</tools>\n"
        "To call one, write its name and arguments as JSON inside of tags:\n"
        '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
    )
    plain = [as_text(message) for message in messages]
    if plain and plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{text}"}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def as_text(message: dict) -> dict:
    """Calls and their results as text, for a template that knows neither."""
    if message["role"] == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{message['content']}\n</tool_response>",
        }
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "content": "\n".join([message.get("content") or "", *calls]).strip()}


def forced_schema(ask: Ask) -> dict[str, Any]:
    """The JSON schema of one call of a tool that tool_choice allows."""
    options = []
    for tool in ask.tools:
        function = tool["function"]
        if ask.tool_choice in ("required", function["name"]):
            options.append({
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": function.get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            })  # fmt: skip
    if not options:
        raise ApiError(400, "tool_choice names a function that tools does not have", "tool_choice")
    return options[0] if len(options) == 1 else {"anyOf": options}


async def start(service: Service, ask: Ask, prompt: Prompt | None = None) -> list[Answer]:
    """Queues a chat: one Answer per choice. Raises: ApiError."""
    prompt = prompt or await render(service, ask)
    if ask.choices > service.settings.max_choices:
        raise ApiError(400, f"n: at most {service.settings.max_choices} choices", "n")
    forced = bool(ask.tools) and ask.tool_choice not in ("auto", "none")
    grammar = ("json_schema", forced_schema(ask)) if forced else ask.grammar
    requests = []
    for number in range(ask.choices):
        matcher = await service.matcher(*grammar) if grammar else None
        if matcher is not None and prompt.thinking:
            matcher.begin_after(think_end(service))
        requests.append(request_for(service, ask, prompt.ids, number, matcher))
    tools = frozenset(tool["function"]["name"] for tool in ask.tools)
    if ask.tool_choice == "none":
        tools = frozenset()
    parsers = [AnswerParser(service.dialect, tools, prompt.thinking, forced) for _ in requests]
    handles = service.submit(requests)
    count = len(prompt.ids)
    return [Answer(h, p, count) for h, p in zip(handles, parsers, strict=True)]


def think_end(service: Service) -> int | None:
    """The id that ends thinking, where it is one token."""
    return service.tokenizer.backend_tokenizer.token_to_id(service.dialect.think[1])


def request_for(
    service: Service, ask: Ask, ids: list[int], number: int = 0, matcher: Any = None
) -> Request:
    """The engine's request for one choice."""
    sampling = dataclasses.replace(service.settings.sampling, **ask.sampling)
    if number and sampling.seed is not None:
        sampling = dataclasses.replace(sampling, seed=sampling.seed + number)
    room = service.answer_room(len(ids), ask.max_tokens)
    stop_ids = () if ask.ignore_eos else service.settings.stop_ids
    return Request(
        prompt=ids,
        sampling=sampling,
        max_new_tokens=room,
        min_new_tokens=min(ask.min_tokens, room),
        stop=ask.stop,
        stop_ids=stop_ids,
        top_logprobs=ask.top_logprobs,
        logit_bias=ask.logit_bias,
        matcher=matcher,
        keep_special=service.dialect.marks(),
    )
