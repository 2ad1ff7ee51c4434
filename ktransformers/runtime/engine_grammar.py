"""What an answer may look like: JSON schema, regular expression or grammar, through llguidance.

A grammar becomes a Matcher, which says before each token which tokens may follow. Its automata work
in linear time; what a request may ask of it is bounded in size, states and seconds.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np

from ktransformers.errors import UserError

MAX_GRAMMAR_BYTES = 256 << 10
KINDS = ("json_schema", "json_object", "regex", "gbnf", "lark")

# JSON lets any white space stand between its parts, and a small model may then write nothing else
# until its answer's tokens are used up. A space, or a line and its indentation, is all it gets.
JSON_OPTIONS = {"whitespace_pattern": r"\n {0,16}| "}


class Grammars:
    """Makes matchers for one tokenizer. vocab_size: of the model's logits; stop_ids end an answer.

    The tables over the vocabulary are made at the first use (about a second).
    """

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: tuple[int, ...]):
        self._tokenizer, self._vocab_size, self._stop_ids = tokenizer, vocab_size, stop_ids
        self._lock = threading.Lock()
        self._tables: Any = None

    def tables(self) -> Any:
        """llguidance's view of the vocabulary."""
        with self._lock:
            if self._tables is None:
                from llguidance.hf import from_tokenizer

                ends = list(self._stop_ids) or None
                self._tables = from_tokenizer(
                    self._tokenizer, n_vocab=self._vocab_size, eos_token=ends
                )
            return self._tables

    def matcher(self, kind: str, source: Any) -> Matcher:
        """A matcher for a grammar. kind: one of KINDS; source: the schema (object or text) or text.

        Raises: UserError for a grammar that is too large or that llguidance refuses.
        """
        from llguidance import LLMatcher, LLParserLimits

        text = self.grammar(kind, source)
        limits = LLParserLimits(max_grammar_size=500_000, max_lexer_states=100_000)
        matcher = LLMatcher(self.tables(), text, log_level=0, limits=limits)
        if matcher.is_error():
            line = " ".join(matcher.get_error().split())[:300]
            raise UserError(f"{kind}: {line}")
        return Matcher(matcher, self._vocab_size)

    def grammar(self, kind: str, source: Any) -> str:
        """llguidance's form of a grammar."""
        from llguidance import LLMatcher

        if kind not in KINDS:
            raise UserError(f"grammar kind {kind!r}: choose {', '.join(KINDS)}")
        if kind == "json_object":
            source = {"type": "object"}
        size = len(source if isinstance(source, str) else json.dumps(source))
        if size > MAX_GRAMMAR_BYTES:
            raise UserError(f"{kind}: {size} characters, at most {MAX_GRAMMAR_BYTES} are allowed")
        try:
            if kind in ("json_schema", "json_object"):
                return LLMatcher.grammar_from_json_schema(source, defaults=JSON_OPTIONS)
            if kind == "regex":
                return LLMatcher.grammar_from_regex(source)
            if kind == "gbnf":
                from llguidance.gbnf_to_lark import gbnf_to_lark

                source = gbnf_to_lark(source)
            return LLMatcher.grammar_from_lark(source)
        except Exception as error:  # the converters raise exceptions of many kinds
            line = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"{kind}: {line}") from error


class Matcher:
    """The state of one answer in its grammar. start_after: an id behind which the grammar begins
    (the end of thinking); None for the first token."""

    def __init__(self, inner: Any, vocab_size: int, start_after: int | None = None):
        self._inner = inner
        self._words = np.zeros((1, -(-vocab_size // 32)), np.int32)
        self._start_after = start_after

    def begin_after(self, token: int | None) -> None:
        self._start_after = token

    def mask(self) -> np.ndarray | None:
        """int32 [ceil(vocab / 32)], a bit per token; None where every token may follow.

        Raises: UserError when the grammar became too complex, or lets nothing follow.
        """
        if self._start_after is not None:
            return None
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._inner, self._words)
        self._check()
        return self._words[0]

    def accept(self, token: int) -> None:
        """Tells which token was chosen. Raises: UserError as mask()."""
        if self._start_after is not None:
            if token == self._start_after:
                self._start_after = None
            return
        self._inner.consume_token(token)
        self._check()

    def _check(self) -> None:
        """A grammar that failed looks complete to llguidance; its answer must not."""
        if self._inner.is_error():
            reason = self._inner.get_error().split("<state>")[0].strip()
            if reason.startswith("NoExtension"):
                reason = "it lets nothing follow"
            raise UserError(f"the grammar cannot be followed any further: {reason[:300]}")

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self._start_after is None and self._inner.is_stopped()
