"""The requests of the Anthropic API that this server reads. What is missing is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ktransformers.server.fields import (
    COUNT,
    NAME,
    OBJECT,
    POSITIVE,
    SHORT,
    STOP_TEXT,
    TEXT,
    TOP_P,
    Body,
    finite,
)


class CacheControl(Body):
    """Accepted: every prompt is cached here, asked or not."""

    type: Literal["ephemeral"]
    ttl: SHORT | None = None


class Block(Body):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: TEXT


class ThinkingBlock(Block):
    type: Literal["thinking"]
    thinking: TEXT
    signature: TEXT | None = None


class ToolUse(Block):
    type: Literal["tool_use"]
    id: SHORT
    name: NAME
    input: OBJECT


class ToolResult(Block):
    type: Literal["tool_result"]
    tool_use_id: SHORT
    content: TEXT | Annotated[list[TextBlock], Field(max_length=1024)] | None = None
    is_error: bool | None = None


BLOCK = Annotated[TextBlock | ThinkingBlock | ToolUse | ToolResult, Field(discriminator="type")]


class AnthropicMessage(Body):
    role: Literal["user", "assistant"]
    content: TEXT | Annotated[list[BLOCK], Field(max_length=4096)]


class AnthropicTool(Block):
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]
    description: TEXT | None = None
    input_schema: OBJECT
    strict: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As templates read it."""
        function = {"name": self.name, "description": self.description or ""}
        return {"type": "function", "function": function | {"parameters": self.input_schema}}


class AnthropicChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: NAME | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """budget_tokens is accepted; the model itself ends its thinking."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: POSITIVE | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: OBJECT = Field(alias="schema")


class OutputConfig(Body):
    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(Body):
    user_id: SHORT | None = None


class CountRequest(Body):
    model: NAME
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=4096)]
    system: TEXT | Annotated[list[TextBlock], Field(max_length=1024)] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    max_tokens: POSITIVE
    stop_sequences: Annotated[list[STOP_TEXT], Field(max_length=16)] | None = None
    stream: bool | None = None
    temperature: finite(0, 1) | None = None
    top_p: TOP_P | None = None
    top_k: COUNT | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
