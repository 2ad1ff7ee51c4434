"""The OpenAI API's requests as this server reads them. What is missing is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ktransformers.server.fields import (
    BIASES,
    COUNT,
    NAME,
    OBJECT,
    POSITIVE,
    SEED,
    SHORT,
    STOPS,
    TEXT,
    TOOLS,
    TOP_P,
    Body,
    finite,
    plain_call,
)


class TextPart(Body):
    type: Literal["text", "input_text"]
    text: TEXT


CONTENT = TEXT | Annotated[list[TextPart], Field(max_length=1024)]


class CallFunction(Body):
    name: NAME
    arguments: TEXT = "{}"


class ToolCall(Body):
    id: SHORT | None = None
    type: Literal["function"] = "function"
    function: CallFunction
    index: COUNT | None = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: CONTENT | None = None
    name: NAME | None = None
    reasoning_content: TEXT | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: SHORT | None = None
    refusal: TEXT | None = None

    def plain(self) -> dict[str, Any]:
        """As templates read it."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        made: dict[str, Any] = {"role": role, "content": content or ""}
        if self.name:
            made["name"] = self.name
        if self.reasoning_content:
            made["reasoning_content"] = self.reasoning_content
        if self.tool_call_id:
            made["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            made["tool_calls"] = [
                plain_call(
                    number, call.id, call.function.name, parsed_arguments(call.function.arguments)
                )
                for number, call in enumerate(self.tool_calls)
            ]
        return made


def parsed_arguments(text: str) -> Any:
    """Templates write arguments as JSON themselves; text that is none stays text."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return text


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    name: NAME = "schema"
    description: TEXT | None = None
    schema_: OBJECT = Field(alias="schema", default_factory=dict)
    strict: bool | None = None


class ResponseFormat(Body):
    """regex and grammar are ours: text in `regex`, or GBNF in `grammar`."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    regex: TEXT | None = None
    grammar: TEXT | None = None

    @model_validator(mode="after")
    def _has_its_source(self):
        needed = {"json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}
        name = needed.get(self.type)
        if name and getattr(self, name) is None:
            raise ValueError(f"type {self.type} needs the field {name}")
        return self

    def plain(self) -> tuple[str, Any] | None:
        if self.type == "json_schema":
            return "json_schema", self.json_schema.schema_ or {"type": "object"}
        if self.type == "regex":
            return "regex", self.regex
        if self.type == "grammar":
            return "gbnf", self.grammar
        return ("json_object", None) if self.type == "json_object" else None


class NamedFunction(Body):
    name: NAME


class NamedChoice(Body):
    type: Literal["function"]
    function: NamedFunction


class Sampling(Body):
    """What chat and text completion have in common."""

    model: NAME | None = None
    temperature: finite(0, 2) | None = None
    top_p: TOP_P | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: finite(0, 1) | None = None
    repetition_penalty: finite(0.01, 100) | None = None
    frequency_penalty: finite(-2, 2) | None = None
    presence_penalty: finite(-2, 2) | None = None
    seed: SEED | None = None
    stop: STOPS | None = None
    max_tokens: COUNT | None = None
    min_tokens: COUNT | None = None
    ignore_eos: bool | None = None
    logit_bias: BIASES | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: SHORT | None = None
    return_speed: bool | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self):
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        return self

    def sampling(self) -> dict[str, Any]:
        """The fields of runtime.session.SamplingOptions that were given."""
        from ktransformers.server.fields import seed_of

        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": self.min_p,
            "repeat_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": seed_of(self.seed),
        }
        return {name: value for name, value in given.items() if value is not None}

    def biases(self) -> dict[int, float]:
        return {int(key): value for key, value in (self.logit_bias or {}).items()}


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: POSITIVE | None = None
    tools: TOOLS | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: Annotated[OBJECT, Field(max_length=32)] | None = None
    metadata: Annotated[OBJECT, Field(max_length=64)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    prompt_cache_key: SHORT | None = None
    safety_identifier: SHORT | None = None

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        return self


IDS = Annotated[list[COUNT], Field(min_length=1, max_length=1 << 20)]


class CompletionRequest(Sampling):
    """prompt: a text, ids, or lists of either."""

    prompt: (
        TEXT
        | IDS
        | Annotated[list[TEXT], Field(min_length=1, max_length=64)]
        | Annotated[list[IDS], Field(min_length=1, max_length=64)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 needs echo: true")
        if self.echo and self.stream:
            raise ValueError("echo is not supported with stream: true")
        return self

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
