"""How families of models write their thinking and their tool calls: marks, and what is between.

One entry per way of writing; which of them a model uses is seen from its chat template and
vocabulary. A body is read by a function: text -> [(name, arguments as JSON text)]; ValueError where
it is no call, and then the text is shown as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Call = tuple[str, str]


@dataclass(frozen=True)
class Dialect:
    """think: (open, close) marks of thinking. tools: (open, close) marks of a block of calls; a
    close of None means the block ends with the answer. read: what a block's body says.
    bare: an answer that is nothing but a JSON object with one of the tools' names is a call."""

    name: str
    tools: tuple[tuple[str, str | None], ...]
    read: Callable[[str], list[Call]]
    think: tuple[str, str] = ("<think>", "</think>")
    bare: bool = False

    def marks(self) -> frozenset[str]:
        """Every mark; where a vocabulary has them as special tokens, they must stay visible."""
        inner = {part for part in INNER.get(self.name, ())}
        outer = {mark for pair in (*self.tools, self.think) for mark in pair if mark}
        return frozenset(outer | inner)


def arguments_text(value: Any) -> str:
    """Arguments as compact JSON text. Raises: ValueError where they are no object."""
    if isinstance(value, str):  # some models write the object as a string
        value = json.loads(value)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ValueError("arguments are no object")
    return json.dumps(value, ensure_ascii=False)


def call_of(value: Any) -> Call:
    """{"name": ..., "arguments" or "parameters": {...}} as a call. Raises: ValueError."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("no call")
    return value["name"], arguments_text(value.get("arguments", value.get("parameters")))


def json_values(text: str) -> list[Any]:
    """JSON values one after another, with blanks, commas or semicolons between."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at] in " \n\r\t,;":
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    if not values:
        raise ValueError("empty")
    return values


def read_json(body: str) -> list[Call]:
    calls = []
    for value in json_values(body):
        calls += map(call_of, value if isinstance(value, list) else [value])
    if not calls:
        raise ValueError("no call")
    return calls


_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.S)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.S)


def read_hermes(body: str) -> list[Call]:
    """Hermes and Qwen: JSON; Qwen-Coder: <function=...><parameter=...>; GLM: name, <arg_key>."""
    if "<function=" in body:
        calls = [
            (name.strip(), json.dumps(dict(_typed(_PARAMETER.findall(inner))), ensure_ascii=False))
            for name, inner in _FUNCTION.findall(body)
        ]
    elif "<arg_key>" in body or not body.lstrip().startswith(("{", "[")):
        calls = [read_glm(body)]
    else:
        return read_json(body)
    if not calls:
        raise ValueError("no call")
    return calls


_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.S)


def read_glm(body: str) -> Call:
    name = body.partition("<arg_key>")[0].strip()
    if not re.fullmatch(r"[\w.\-:/]{1,256}", name):
        raise ValueError("no name")
    pairs = [(key.strip(), value.strip()) for key, value in _ARGUMENT.findall(body)]
    return name, json.dumps(dict(_typed(pairs)), ensure_ascii=False)


def _typed(pairs: list[tuple[str, str]]) -> list[tuple[str, Any]]:
    """Values written as bare text: JSON where they are, else the text."""
    result = []
    for key, text in pairs:
        try:
            result.append((key.strip(), json.loads(text)))
        except ValueError:
            result.append((key.strip(), text))
    return result


_MISTRAL = re.compile(r"\s*([\w.\-]{1,256})\s*(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?\s*(?=\{)", re.S)


def read_mistral(body: str) -> list[Call]:
    """A JSON list of calls, or name[ARGS]{...} repeated, with [TOOL_CALLS] between."""
    if body.lstrip().startswith(("[{", "[ {", "{")):
        return read_json(body)
    calls, decoder, at = [], json.JSONDecoder(), 0
    text = body.replace("[TOOL_CALLS]", " ")
    while text[at:].strip():
        match = _MISTRAL.match(text, at)
        if not match:
            raise ValueError("no call")
        value, at = decoder.raw_decode(text, match.end())
        calls.append((match[1], arguments_text(value)))
    if not calls:
        raise ValueError("no call")
    return calls


_DEEPSEEK = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁call▁end｜>", re.S)


def read_deepseek(body: str) -> list[Call]:
    """V3: function<sep>name, then a fenced block of JSON; V3.1: name<sep>JSON."""
    calls = []
    for inner in _DEEPSEEK.findall(body):
        first, separator, rest = inner.partition("<｜tool▁sep｜>")
        if not separator:
            raise ValueError("no call")
        fenced = re.search(r"```(?:json)?\n(.*?)\n?```", rest, re.S)
        if fenced:
            name, text = rest[: fenced.start()].strip(), fenced[1]
        else:
            name, text = first.strip(), rest
        if not name:
            raise ValueError("no name")
        calls.append((name, arguments_text(json.loads(text))))
    if not calls:
        raise ValueError("no call")
    return calls


_KIMI = re.compile(
    r"<\|tool_call_begin\|>\s*(\S+?)\s*<\|tool_call_argument_begin\|>(.*?)<\|tool_call_end\|>",
    re.S,
)


def read_kimi(body: str) -> list[Call]:
    calls = []
    for place, text in _KIMI.findall(body):
        name = place.removeprefix("functions.").rpartition(":")[0] or place
        calls.append((name, arguments_text(json.loads(text))))
    if not calls:
        raise ValueError("no call")
    return calls


# Marks inside of a block of calls.
INNER = {
    "deepseek": ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    "kimi": ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    "mistral": ("[ARGS]", "[CALL_ID]"),
    "hermes": ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
}
HERMES = Dialect("hermes", (("<tool_call>", "</tool_call>"),), read_hermes)
DEEPSEEK = Dialect("deepseek", (("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),), read_deepseek)
KIMI = Dialect("kimi", (("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),), read_kimi)
MISTRAL = Dialect("mistral", (("[TOOL_CALLS]", None),), read_mistral, think=("[THINK]", "[/THINK]"))
LLAMA3 = Dialect("llama3", (("<|python_tag|>", None),), read_json, bare=True)
DIALECTS = {d.name: d for d in (DEEPSEEK, KIMI, MISTRAL, LLAMA3, HERMES)}


def dialect_of(template: str) -> Dialect:
    """The dialect a chat template speaks; Hermes where it shows none."""
    for dialect in (DEEPSEEK, KIMI, MISTRAL, LLAMA3):
        if any(opening in template for opening, _ in dialect.tools):
            return dialect
    return HERMES if "<|start_header_id|>" not in template else LLAMA3
