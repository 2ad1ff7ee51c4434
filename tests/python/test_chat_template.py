"""Chat templates: the text each format must give, where a template comes from, and its bounds."""

import time

import pytest
from tokenizer_cases import VECTORS, tiny_bpe, tiny_spm

from ktransformers.checkpoint import chat_template as ct
from ktransformers.checkpoint.tokenizer import build_tokenizer
from ktransformers.errors import UserError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Why?"},
]
SHORT = TALK[1:2]

# Tokens that tell a format, and the text the published template of that format gives for TALK.
CHATML = "".join(
    f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in [tuple(m.values()) for m in TALK]
)
LLAMA3 = "<|begin|>" + "".join(
    f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
    for role, text in [tuple(m.values()) for m in TALK]
)
STAND_INS = {
    "ChatML": (["<|im_start|>"], {}, CHATML + "<|im_start|>assistant\n"),
    "Llama 3": (
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        {},
        LLAMA3 + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "DeepSeek": (
        ["<｜User｜>", "<｜Assistant｜>"],
        {},
        "<|begin|>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Why?"
        "<｜Assistant｜>",
    ),
    "DeepSeek-V2": (
        [],
        {"general.architecture": "deepseek2"},
        "<|begin|>Be brief.\n\nUser: Hi\n\nAssistant: Hello!<|stop|>User: Why?\n\nAssistant:",
    ),
    "Mixtral": (
        [],
        {"llama.expert_count": 8},
        "<|begin|> [INST] Be brief.\n\nHi [/INST] Hello!<|stop|> [INST] Why? [/INST]",
    ),
    "plain": (
        [],
        {},
        "<|begin|>System: Be brief.\n\nUser: Hi\n\nAssistant: Hello!\n\nUser: Why?\n\nAssistant:",
    ),
}


def with_tokens(extra, **values):
    """The tiny vocabulary without its ChatML tokens, with those of another format."""
    gguf = tiny_bpe()
    tokens = list(gguf.metadata["tokenizer.ggml.tokens"])
    tokens[267:269] = ["<|stop|>", "<|other|>"]
    types = [*gguf.metadata["tokenizer.ggml.token_type"].tolist(), *([3] * len(extra))]
    gguf = gguf.but(tokens=tokens + list(extra), token_type=types)
    gguf.metadata.update(values)
    return gguf


def with_template(source, **values):
    gguf = tiny_bpe()
    gguf.metadata.update({"tokenizer.chat_template": source, **values})
    return gguf


@pytest.mark.parametrize("name", STAND_INS)
def test_a_missing_template_has_a_stand_in(name, caplog):
    tokens, values, expected = STAND_INS[name]
    tokenizer = build_tokenizer(with_tokens(tokens, **values))
    assert ct.render_chat(tokenizer, TALK) == expected
    assert caplog.messages == [f"hand-made.gguf: has no chat template; using the {name} format"]


def test_a_stand_in_without_a_begin_token_leaves_it_out():
    gguf = with_tokens([]).but(bos_token_id=None)
    assert ct.render_chat(build_tokenizer(gguf), SHORT) == "User: Hi\n\nAssistant:"


# ---- published templates, as the archive of the token vectors collects them ----

USER = "<|im_start|>user\nHi<|im_end|>\n"
BOS = "<|begin|>"
LLAMA31 = (
    BOS + "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
PUBLISHED = {
    "Qwen-Qwen3-0.6B": ({}, USER + "<|im_start|>assistant\n"),
    "Qwen-Qwen2.5-7B-Instruct": (
        {},
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n" + USER + "<|im_start|>assistant\n",
    ),
    "meta-llama-Llama-3.1-8B-Instruct": ({}, LLAMA31),
    "meta-llama-Llama-3.3-70B-Instruct": ({}, LLAMA31),
    "deepseek-ai-DeepSeek-V3.1": (
        {"thinking": True},
        BOS + "<｜User｜>Hi<｜Assistant｜><think>",
    ),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (
        {"enable_thinking": True},
        BOS + "<｜User｜>Hi<｜Assistant｜><think>\n",
    ),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (
        {"enable_thinking": True},
        BOS + "<｜User｜>Hi<｜Assistant｜><think>\n",
    ),
    "Kimi-K2-Instruct": (
        {},
        "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI."
        "<|im_end|>\n<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|>",
    ),
}


def published(name):
    file = VECTORS / "templates" / f"{name}.jinja"
    if not file.exists():
        pytest.fail("no templates: run tests/tools/fetch_token_vectors.sh", pytrace=False)
    return file.read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_give_the_text_of_their_format(name):
    options, expected = PUBLISHED[name]
    tokenizer = build_tokenizer(with_template(published(name)))
    assert ct.render_chat(tokenizer, SHORT, **options) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_rendering_equals_that_of_transformers(name):
    from transformers.utils.chat_template_utils import render_jinja_template

    source = published(name)
    tokenizer = build_tokenizer(with_template(source))
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    for talk in (TALK, SHORT):
        for tools in (None, [tool]):
            expected, _ = render_jinja_template(
                [talk], chat_template=source, tools=tools, add_generation_prompt=True,
                **tokenizer.special_tokens_map,
            )  # fmt: skip
            assert ct.render_chat(tokenizer, talk, tools=tools) == expected[0]


def test_options_reach_the_template():
    tokenizer = build_tokenizer(with_template(published("Qwen-Qwen3-0.6B")))
    text = ct.render_chat(tokenizer, SHORT, enable_thinking=False)
    assert text == USER + "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_ids_of_a_chat_have_one_begin_token():
    tokenizer = build_tokenizer(with_tokens([]).but(add_bos_token=True))
    ids = ct.encode_chat(tokenizer, SHORT)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids) == ct.render_chat(tokenizer, SHORT)


def test_named_templates():
    named = {"tokenizer.chat_template.tool_use": "T", "tokenizer.chat_template.rag": "R"}
    tokenizer = build_tokenizer(with_template("D", **named))
    assert tokenizer.chat_template == {"default": "D", "tool_use": "T", "rag": "R"}
    assert ct.render_chat(tokenizer, SHORT) == "D"
    assert ct.render_chat(tokenizer, SHORT, chat_template="rag") == "R"


# ---- hostile templates ----

ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
    "{{ '%s' % messages.__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'base' %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_a_template_reaches_nothing_outside(source):
    """It fails, or what it asked for is undefined and prints as nothing."""
    tokenizer = build_tokenizer(with_template(source))
    messages = [dict(SHORT[0])]
    try:
        text = ct.render_chat(tokenizer, messages)
    except UserError as error:
        text = str(error).removeprefix("chat template: ")
        assert text != str(error)
        assert "root:" not in text and "uid=" not in text
    else:
        assert text == ""
    assert messages == SHORT


LOOP = "{{% for a in range(99999) %}}{{% for b in range(99999) %}}{}{{% endfor %}}{{% endfor %}}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP.format("{% set c = a %}"),
        LOOP.format("{{ a }}"),
    ],
)
def test_a_template_that_does_not_end_is_stopped(source):
    tokenizer = build_tokenizer(with_template(source))
    start = time.monotonic()
    with pytest.raises(UserError, match="not done after 0.3 s"):
        ct.render_chat(tokenizer, SHORT, seconds=0.3)
    assert time.monotonic() - start < 30


BROKEN = {
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "no Jinja": "{% if %}",
    "unclosed": "{{ messages",
    "nested deeply": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "range too large": "{% for a in range(10000000) %}{% endfor %}",
    "undefined": "{{ messages[7]['content'] + 1 }}",
    "refusal": "{{ raise_exception('only one\n question') }}",
    "output too long": "{{ 'x' * 9000000 }}",
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_templates_give_one_line(case):
    tokenizer = build_tokenizer(with_template(BROKEN[case]))
    with pytest.raises(UserError) as error:
        ct.render_chat(tokenizer, SHORT)
    assert str(error.value).startswith("chat template: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_templates_are_bounded_when_loaded():
    with pytest.raises(UserError, match="tokenizer.chat_template: 300000 bytes, at most 262144"):
        build_tokenizer(with_template("x" * 300_000))
    with pytest.raises(UserError, match="tokenizer.chat_template: expected a string, got 7"):
        build_tokenizer(with_template(7))
    with pytest.raises(UserError, match="chat_template: not valid UTF-8"):
        build_tokenizer(with_template("\udcff"))


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm])
def test_text_that_is_no_text_is_encoded_with_a_mark(make):
    tokenizer = build_tokenizer(make())
    ids = ct.encode_chat(tokenizer, [{"role": "user", "content": "a\udcff\ud800b"}])
    assert "a??b" in tokenizer.decode(ids)
