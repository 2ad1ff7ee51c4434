"""Thinking and tool calls of every dialect, cut into pieces anywhere."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktransformers.server.dialects import DIALECTS, dialect_of
from ktransformers.server.parser import AnswerParser, Part, in_thinking

TOOLS = frozenset({"get_weather", "add"})
ARGUMENTS = {"city": "São Paulo 🙂", "days": 3, "deep": {"list": [1, None, "</x>"]}}
A = json.dumps(ARGUMENTS, ensure_ascii=False)
TWO = [("get_weather", ARGUMENTS), ("add", {"a": 1})]

# (dialect, what a model writes, thinking, text, calls)
CASES = {
    "hermes": ("hermes", "<think>\nHm, a call.\n</think>\n\nLet me see.\n<tool_call>\n"
               f'{{"name": "get_weather", "arguments": {A}}}\n</tool_call>\n<tool_call>\n'
               '{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
               "Hm, a call.", "Let me see.", TWO),
    "qwen coder": ("hermes", "Now.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n"
                   "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
                   "", "Now.", [("get_weather", {"city": "Oslo", "days": 3})]),
    "glm": ("hermes", "<think>why</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
            "<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
            "</tool_call>", "why", "", [("get_weather", {"city": "Oslo", "days": 3})]),
    "llama3": ("llama3", f'{{"name": "get_weather", "parameters": {A}}}', "", "",
               [("get_weather", ARGUMENTS)]),
    "llama3 tag": ("llama3", f'<|python_tag|>{{"name": "get_weather", "parameters": {A}}}; '
                   '{"name": "add", "parameters": {"a": 1}}', "", "", TWO),
    "mistral list": ("mistral", f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {A}}}, '
                     '{"name": "add", "arguments": {"a": 1}}]', "", "", TWO),
    "mistral args": ("mistral", f"[THINK]so[/THINK]Fine.[TOOL_CALLS]get_weather[ARGS]{A}"
                     '[TOOL_CALLS]add[CALL_ID]abc123[ARGS]{"a": 1}', "so", "Fine.", TWO),
    "deepseek v3": ("deepseek", "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function"
                    f"<｜tool▁sep｜>get_weather\n```json\n{A}\n```<｜tool▁call▁end｜>\n"
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
                    '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "", "I look.", TWO),
    "deepseek v3.1": ("deepseek", "<think>x</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
                      f"get_weather<｜tool▁sep｜>{A}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                      "x", "", [("get_weather", ARGUMENTS)]),
    "kimi": ("kimi", "Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
             f"<|tool_call_argument_begin|>{A}<|tool_call_end|><|tool_call_begin|>functions.add:1"
             '<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|><|tool_calls_section_end|>',
             "", "Ok.", TWO),
}  # fmt: skip


def run(parser: AnswerParser, pieces: list[str]) -> Part:
    whole = Part()
    for part in [*(parser.push(piece) for piece in pieces), parser.finish()]:
        whole.thinking += part.thinking
        whole.text += part.text
        whole.calls += part.calls
    return whole


def cut(text: str, places: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in zip(marks, marks[1:], strict=False)]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.integers(0, 10**6), max_size=40))
def test_every_dialect_in_pieces(case, places):
    name, text, thinking, said, calls = CASES[case]
    got = run(AnswerParser(DIALECTS[name], TOOLS), cut(text, places))
    assert got.thinking == thinking and got.text == said
    assert [(n, json.loads(a)) for n, a in got.calls] == calls


@pytest.mark.parametrize("case", CASES)
def test_one_character_at_a_time(case):
    name, text, thinking, said, calls = CASES[case]
    got = run(AnswerParser(DIALECTS[name], TOOLS), list(text))
    assert (got.thinking, got.text) == (thinking, said)
    assert [(n, json.loads(a)) for n, a in got.calls] == calls


MARKS = sorted({mark for d in DIALECTS.values() for mark in d.marks()})
SOUP = st.lists(
    st.one_of(
        st.sampled_from(MARKS),
        st.sampled_from([mark[:-1] for mark in MARKS] + ["<", "{", "[", "\n", " ", "```", "}"]),
        st.sampled_from(['{"name": "add", "arguments": {}}', '{"a": 1}', "add", "word ", "🙂"]),
        st.text(max_size=6),
    ),
    max_size=16,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    text=SOUP,
    places=st.lists(st.integers(0, 10**6), max_size=12),
    name=st.sampled_from(sorted(DIALECTS)),
    tools=st.sampled_from([TOOLS, frozenset()]),
    thinking=st.booleans(),
    forced=st.booleans(),
)
def test_pieces_change_nothing_whatever_comes(text, places, name, tools, thinking, forced):
    def parser() -> AnswerParser:
        return AnswerParser(DIALECTS[name], tools, thinking, forced)

    whole, pieces = run(parser(), [text]), run(parser(), cut(text, places))
    assert (whole.thinking, whole.text, whole.calls) == (
        pieces.thinking, pieces.text, pieces.calls,
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(text=SOUP, name=st.sampled_from(sorted(DIALECTS)))
def test_without_tools_and_thinking_nothing_is_lost(text, name):
    dialect = DIALECTS[name]
    got = run(AnswerParser(dialect), list(text))
    if dialect.think[0] not in text:
        assert got.text == text and not got.thinking and not got.calls


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnot a call at all\n</tool_call> after",
        '<tool_call>\n{"name": 3}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "add", "argum',
        "a < b and <tool_ca",
    ],
)
def test_what_is_no_call_is_shown_as_it_is(text):
    got = run(AnswerParser(DIALECTS["hermes"], TOOLS), list(text))
    assert got.text == text and not got.calls


def test_a_bare_json_answer_is_a_call_only_of_a_known_tool():
    text = '{"name": "launch", "parameters": {}}'
    assert run(AnswerParser(DIALECTS["llama3"], TOOLS), [text]).text == text
    assert run(AnswerParser(DIALECTS["llama3"]), [text]).text == text


def test_a_prompt_that_opened_thinking():
    got = run(
        AnswerParser(DIALECTS["hermes"], in_thinking=True), ["let me", " see</thi", "nk>\n\nYes"]
    )
    assert (got.thinking, got.text) == ("let me see", "Yes")
    assert in_thinking("...<|im_start|>assistant\n<think>\n", DIALECTS["hermes"])
    assert not in_thinking("<think>\n\n</think>\n\n", DIALECTS["hermes"])
    got = run(AnswerParser(DIALECTS["hermes"], in_thinking=True), ["never ends"])
    assert (got.thinking, got.text) == ("never ends", "")


@pytest.mark.parametrize(
    "template, name",
    [
        ("{{ '<tool_call>' }}", "hermes"), ("<｜tool▁calls▁begin｜>", "deepseek"),
        ("<|tool_calls_section_begin|>", "kimi"), ("[TOOL_CALLS]", "mistral"),
        ("<|python_tag|>", "llama3"), ("<|start_header_id|>", "llama3"), ("", "hermes"),
    ],
)  # fmt: skip
def test_the_template_tells_the_dialect(template, name):
    assert dialect_of(template).name == name
