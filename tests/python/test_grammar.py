"""Grammars over a real vocabulary: what an answer's mask lets through, byte for byte."""

import json

import pytest

from ktransformers import AutoTokenizer
from ktransformers.errors import UserError
from ktransformers.runtime.engine_grammar import Grammars
from tests.support import smollm2

VOCAB_SIZE = 49152
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Tokyo"]}, "areas": {"type": "array"}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.dense_path())


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCAB_SIZE, (2,))


def follows(grammars, tokenizer, kind, source, text):
    """Whether each token of a text is let through by the mask before it, and the end after it."""
    matcher = grammars.matcher(kind, source)
    for token in [*tokenizer(text, add_special_tokens=False).input_ids, 2]:
        mask = matcher.mask()
        if not mask[token // 32] >> (token % 32) & 1:
            return False
        matcher.accept(token)
    return matcher.complete


VALUE = {"city": "Oslo", "areas": [1, {"a": []}]}


@pytest.mark.parametrize("indent", [None, 2, 4])
@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_json_may_be_compact_or_indented(grammars, tokenizer, indent, separators):
    text = json.dumps(VALUE, indent=indent, separators=separators)
    assert follows(grammars, tokenizer, "json_schema", CITY, text)


@pytest.mark.parametrize("space", ["  ", "\n\n", "\n \n", " \n", "\t", "\n" + " " * 17])
@pytest.mark.parametrize("where", ['{%s"city": "Oslo"}', '{"city":%s"Oslo"}', '{"city": "Oslo"%s}'])
def test_json_is_not_filled_with_white_space(grammars, tokenizer, space, where):
    assert json.loads(where % space) == {"city": "Oslo"}
    assert not follows(grammars, tokenizer, "json_schema", CITY, where % space)


def test_json_that_does_not_fit_its_schema(grammars, tokenizer):
    assert not follows(grammars, tokenizer, "json_schema", CITY, '{"city": "Rome"}')
    assert not follows(grammars, tokenizer, "json_schema", CITY, '{"areas": []}')
    assert follows(grammars, tokenizer, "json_object", None, '{"city": "Rome"}')
    assert not follows(grammars, tokenizer, "json_object", None, "[1]")


def test_regular_expressions_and_grammars(grammars, tokenizer):
    assert follows(grammars, tokenizer, "regex", r"\d{3}-[A-C]{2}", "123-AB")
    assert not follows(grammars, tokenizer, "regex", r"\d{3}-[A-C]{2}", "123-AD")
    assert follows(grammars, tokenizer, "gbnf", 'root ::= "yes" | "no"', "no")
    assert not follows(grammars, tokenizer, "gbnf", 'root ::= "yes" | "no"', "maybe")


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", {"type": "nonsense"}),
        ("regex", "("),
        ("gbnf", "root = "),
        ("regex", "a" * (257 << 10)),
        ("yaml", "a"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_told_in_one_line(grammars, kind, source):
    with pytest.raises(UserError, match=kind) as told:
        grammars.matcher(kind, source)
    assert "\n" not in str(told.value)
