"""Chat templates: where they come from, what stands in for a missing one, bounds on rendering.

A template is a program from an untrusted file. transformers renders it in Jinja's immutable sandbox
without loaders: it reaches neither files nor imports nor attributes of Python objects. The sandbox
does not bound work, so a template is refused above 256 KiB, and rendering is stopped after some
seconds or 8 MiB of text. Not bounded: the memory one expression takes ("x" * 10**9 asks for it at
once), and a single library call that runs long; a server renders strangers' templates not at all.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ktransformers.checkpoint import metadata as md
from ktransformers.checkpoint.config_files import ModelFolder
from ktransformers.errors import UserError

log = logging.getLogger("ktransformers.tokenizer")

MAX_TEMPLATE_BYTES = 256 << 10
MAX_NAMED = 32
MAX_RENDERED_CHARS = 8 << 20
RENDER_SECONDS = 10.0

_KEY = "tokenizer.chat_template"

# Stand-ins for a missing template, by a token that only vocabularies of that format have. Written
# from the formats' descriptions; `bos_token` is empty where a model has none.
_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "<｜Assistant｜>{{ message['content'] }}<｜end▁of▁sentence｜>"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
# DeepSeek-V2 writes the roles out; its vocabulary has no tokens for them.
_DEEPSEEK_V2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}User: {{ message['content'] }}\n\n"
    "{% elif message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Mixtral has no system role; what a system message says is put before the first question.
_MIXTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'user' %} [INST] {{ ns.system }}{{ message['content'] }} [/INST]"
    "{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{% set ns.system = message['content'] + '\n\n' %}{% endif %}"
    "{% endfor %}"
)
_PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_BY_TOKEN = (
    ("<|im_start|>", "ChatML", _CHATML),
    ("<|start_header_id|>", "Llama 3", _LLAMA3),
    ("<｜User｜>", "DeepSeek", _DEEPSEEK),
)


def templates_of(gguf: Any, folder: ModelFolder | None = None) -> dict[str, str]:
    """Name -> template; "default" is the usual one. The folder's, where it has any, win.

    Empty when neither has one. Raises: UserError for a template that is too large or no text.
    """
    if folder is not None:
        found = _from_settings(folder) | folder.templates()
        for name, source in found.items():
            if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
                large = f"{len(source)} characters, at most {MAX_TEMPLATE_BYTES} bytes are allowed"
                raise UserError(f"{folder.path}: chat template {md.shown(name)}: {large}")
        if found:
            return found
    if gguf is None:
        return {}
    found = {}
    source = md.get_str(gguf, _KEY, MAX_TEMPLATE_BYTES, default=None)
    if source:
        found["default"] = source
    named = [key for key in gguf.metadata if key.startswith(_KEY + ".")]
    for key in named[:MAX_NAMED]:
        found[key.removeprefix(_KEY + ".")] = md.get_str(gguf, key, MAX_TEMPLATE_BYTES)
    return found


def _from_settings(folder: ModelFolder) -> dict[str, str]:
    """tokenizer_config.json's "chat_template": a string, or a list of {name, template}."""
    given = (folder.json("tokenizer_config.json") or {}).get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    found = {}
    for entry in given[:MAX_NAMED] if isinstance(given, list) else []:
        pair = entry if isinstance(entry, dict) else {}
        name, source = pair.get("name"), pair.get("template")
        if not isinstance(name, str) or not isinstance(source, str):
            where = folder.path / "tokenizer_config.json"
            raise UserError(f"{where}: chat_template: {md.shown(entry)} is no name and template")
        found[name] = source
    return found


def stand_in(tokenizer: Any, architecture: str, has_experts: bool) -> tuple[str, str]:
    """(name, template) for a model whose files have none, from its vocabulary and architecture."""
    backend = tokenizer.backend_tokenizer
    for token, name, source in _BY_TOKEN:
        if backend.token_to_id(token) is not None:
            return name, source
    if architecture == "deepseek2":
        return "DeepSeek-V2", _DEEPSEEK_V2
    if architecture == "llama" and has_experts:
        return "Mixtral", _MIXTRAL
    return "plain", _PLAIN


def set_chat_template(tokenizer: Any, gguf: Any, folder: ModelFolder | None = None) -> None:
    """Gives `tokenizer` the model's chat template, or a stand-in and a line that says so."""
    found = templates_of(gguf, folder)
    if not found or "default" not in found:
        values = gguf.metadata if gguf is not None else {}
        architecture = values.get("general.architecture", "")
        experts = values.get(f"{architecture}.expert_count", 0)
        name, source = stand_in(tokenizer, architecture, bool(experts))
        where = md.file_name(gguf) if gguf is not None else folder.path
        log.warning("%s: has no chat template; using the %s format", where, name)
        found["default"] = source
    tokenizer.chat_template = found if len(found) > 1 else found["default"]


def render_chat(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    seconds: float = RENDER_SECONDS,
    **options: Any,
) -> str:
    """The text of a conversation, ending where the model's answer begins.

    options: passed to `apply_chat_template` (tools, enable_thinking, ...).
    Raises: UserError when the template is no Jinja, refuses the conversation or breaks a bound.
    """
    text = _within(
        seconds,
        lambda: tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        ),
    )
    if len(text) > MAX_RENDERED_CHARS:
        raise UserError(
            f"chat template: gave {len(text)} characters (at most {MAX_RENDERED_CHARS})"
        )
    return text


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, Any]], **options: Any) -> list[int]:
    """Ids of `render_chat`'s text; the template, not the tokenizer, puts the begin token."""
    text = render_chat(tokenizer, messages, **options)
    # A lone surrogate (an undecodable byte of a terminal or file) is no text a vocabulary knows.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


class _TimeOut(Exception):
    """Thrown into a rendering thread whose time is over."""


def _within(seconds: float, render: Callable[[], str]) -> str:
    """`render()` in a thread of its own, ended after `seconds`; its errors as one line."""
    result: list[str] = []
    problem: list[BaseException] = []

    def work() -> None:
        try:
            result.append(render())
        except BaseException as error:  # told to the caller below
            problem.append(error)

    thread = threading.Thread(target=work, name="chat-template", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # Takes effect at the thread's next Python instruction, which loops of a template run.
        identity = ctypes.c_ulong(thread.ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(_TimeOut))
        thread.join(1.0)
        if not result:
            raise UserError(f"chat template: not done after {seconds:g} s; it may loop without end")
    if problem:
        error = problem[0]
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"chat template: {text}") from error
    return result[0]
