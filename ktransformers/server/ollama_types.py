"""The requests of the Ollama API that this server reads. What is missing is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ktransformers.server.fields import (
    NAME,
    OBJECT,
    SEED,
    SHORT,
    STOPS,
    TEXT,
    TOOLS,
    TOP_P,
    Body,
    finite,
    plain_call,
    seed_of,
    stop_texts,
)

KEEP = Annotated[str, Field(max_length=32, pattern=r"^-?[0-9.]+(ns|us|ms|s|m|h)?$")]


class Options(Body):
    """num_ctx: up to the server's context; what only moves work about changes nothing."""

    temperature: finite(0, 100) | None = None
    top_p: TOP_P | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: finite(0, 1) | None = None
    repeat_penalty: finite(0.01, 100) | None = None
    presence_penalty: finite(-100, 100) | None = None
    frequency_penalty: finite(-100, 100) | None = None
    seed: SEED | None = None
    num_predict: Annotated[int, Field(ge=-2, le=2**31 - 1)] | None = None
    num_ctx: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    stop: STOPS | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    use_mmap: bool | None = None
    main_gpu: int | None = None

    def sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty",
                 "frequency_penalty")  # fmt: skip
        given = {name: getattr(self, name) for name in names} | {"seed": seed_of(self.seed)}
        return {name: value for name, value in given.items() if value is not None}

    def limit(self) -> int | None:
        """num_predict: -1 and -2 mean as many as there is room for."""
        return self.num_predict if self.num_predict and self.num_predict > 0 else None


class CallFunction(Body):
    name: NAME
    arguments: OBJECT = {}
    description: TEXT | None = None
    index: int | None = None


class OllamaCall(Body):
    id: SHORT | None = None
    type: Literal["function"] | None = None
    function: CallFunction


class OllamaMessage(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: TEXT | None = None
    thinking: TEXT | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=128)] | None = None
    tool_name: NAME | None = None
    tool_call_id: SHORT | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, Any]:
        """As templates read it."""
        made: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.thinking:
            made["reasoning_content"] = self.thinking
        if self.tool_name:
            made["name"] = self.tool_name
        if self.tool_call_id:
            made["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            made["tool_calls"] = [
                plain_call(number, call.id, call.function.name, call.function.arguments)
                for number, call in enumerate(self.tool_calls)
            ]
        return made


class Common(Body):
    """keep_alive changes nothing: the one model stays as long as the server runs."""

    model: NAME
    stream: bool = True
    format: Literal["", "json"] | OBJECT | None = None
    options: Options | None = None
    keep_alive: KEEP | finite(-1e9, 1e9) | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def grammar(self) -> tuple[str, Any] | None:
        if not self.format:
            return None
        return ("json_object", None) if self.format == "json" else ("json_schema", self.format)

    def stops(self) -> tuple[str, ...]:
        return stop_texts(self.options.stop) if self.options else ()


class OllamaChat(Common):
    messages: Annotated[list[OllamaMessage], Field(max_length=4096)] = []
    tools: TOOLS | None = None


class OllamaGenerate(Common):
    prompt: TEXT = ""
    system: TEXT | None = None
    raw: bool | None = None
    suffix: Literal[""] | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None


class ShowRequest(Body):
    model: NAME | None = None
    name: NAME | None = None
    verbose: bool | None = None
