"""The vocabulary of a GGUF file, read and checked; needs neither torch nor tokenizers.

Token types (`tokenizer.ggml.token_type`): 1 normal, 2 unknown, 3 control, 4 user defined,
5 unused, 6 byte. Control and user-defined tokens are recognised in the text before it is cut; of
these only control tokens are left out when text is decoded for a reader.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ktransformers.checkpoint import metadata as md
from ktransformers.checkpoint.gguf import GGUFFile
from ktransformers.checkpoint.pretokenizers import PRE_TOKENIZERS, known_names
from ktransformers.errors import UserError

log = logging.getLogger("ktransformers.tokenizer")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

MAX_TOKENS = 1 << 21
# Longest piece: real vocabularies end near 260 characters. The bound keeps work on a hostile file
# linear: merges by score look at every cut of every token.
MAX_TOKEN_CHARS = {"gpt2": 4096, "llama": 320}

Fail = Callable[[str], UserError]

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>\Z")
_PADDING = re.compile(r"\[PAD\d+\]\Z")

# Special ids: attribute, metadata key, default of SentencePiece vocabularies, whether a value
# outside the vocabulary is an error (the ones generation depends on) or only dropped with a note.
_SPECIAL = (
    ("bos", "bos_token_id", 1, True),
    ("eos", "eos_token_id", 2, True),
    ("eot", "eot_token_id", None, True),
    ("eom", "eom_token_id", None, True),
    ("unk", "unknown_token_id", 0, False),
    ("pad", "padding_token_id", None, False),
)

# Texts of tokens that end an answer in the families' chat formats; converters often leave their
# ids out of the metadata.
_END_TEXTS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<|EOT|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "[EOT]", "[EOS]", "</s>",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary: `tokens[id]` are unique and non-empty, ids in `special` are in range.

    kind: "gpt2" (byte-level BPE, with `merges`) or "llama" (SentencePiece BPE, with `scores`).
    """

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    where: str = "vocabulary"

    def text(self, name: str) -> str | None:
        """Text of the special token `name` ("bos", "eos", ...), None when there is none."""
        token_id = self.special.get(name)
        return None if token_id is None else self.tokens[token_id]

    def is_padding(self, token_id: int) -> bool:
        """Whether the entry only fills the embedding up to a round size ("[PAD1234]")."""
        return _PADDING.match(self.tokens[token_id]) is not None

    def end_ids(self) -> list[int]:
        """Ids that end an answer: eos, eot, eom and the control tokens with a known end text."""
        ends = {self.special[name] for name in ("eos", "eot", "eom") if name in self.special}
        wanted = set(_END_TEXTS)
        for token_id, kind in enumerate(self.types):
            if kind in (CONTROL, USER_DEFINED) and self.tokens[token_id] in wanted:
                ends.add(token_id)
        return sorted(ends)


_KNOWN: weakref.WeakKeyDictionary[GGUFFile, Vocabulary] = weakref.WeakKeyDictionary()


def read_vocabulary(gguf: Any) -> Vocabulary:
    """The vocabulary in the metadata of `gguf`; that of an open file is read and checked once.

    Raises: UserError naming file, key and value for anything that is missing, of a wrong type or
    length, out of range, duplicated, or of a kind that is not known.
    """
    if not isinstance(gguf, GGUFFile):
        return _read(gguf)
    if gguf not in _KNOWN:
        _KNOWN[gguf] = _read(gguf)
    return _KNOWN[gguf]


def _read(gguf: Any) -> Vocabulary:
    prefix = "tokenizer.ggml."
    kind = md.get_str(gguf, prefix + "model", 64)
    if kind not in MAX_TOKEN_CHARS:
        problem = f"tokenizer kind '{kind}' is not supported (known: {', '.join(MAX_TOKEN_CHARS)})"
        raise md.fail(gguf, prefix + "model", problem)
    pre = md.get_str(gguf, prefix + "pre", 64, default="")
    if kind == "gpt2" and pre not in PRE_TOKENIZERS:
        problem = f"pre-tokenizer '{pre}' is not known (known: {', '.join(known_names())})"
        raise md.fail(gguf, prefix + "pre", problem)
    if kind == "gpt2" and pre == "":
        log.warning("%s names no pre-tokenizer; text may be cut wrongly", md.file_name(gguf))

    def fail(key: str) -> Fail:
        return lambda problem: md.fail(gguf, prefix + key, problem)

    tokens = md.get_list(gguf, prefix + "tokens", str)
    tokens = checked_tokens(tokens, MAX_TOKEN_CHARS[kind], fail("tokens"))
    count = len(tokens)
    types = md.get_list(gguf, prefix + "token_type", int, count, default=None)
    types = [NORMAL] * count if types is None else types
    check_types(types, tokens, fail("token_type"))
    scores: list[float] = []
    merges: list[tuple[str, str]] = []
    if kind == "llama":
        scores = md.get_list(gguf, prefix + "scores", float, count)
        check_scores(scores, fail("scores"))
    else:
        merges = _read_merges(gguf, prefix + "merges", tokens)

    entry = PRE_TOKENIZERS.get(pre)
    bos_default = True if kind == "llama" else entry.add_bos
    return Vocabulary(
        kind=kind,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores,
        merges=merges,
        special=_read_special(gguf, prefix, kind, count),
        add_bos=md.get_bool(gguf, prefix + "add_bos_token", default=bos_default),
        add_eos=md.get_bool(gguf, prefix + "add_eos_token", default=False),
        add_space_prefix=md.get_bool(gguf, prefix + "add_space_prefix", default=kind == "llama"),
        where=md.file_name(gguf),
    )


def checked_tokens(tokens: list[str], max_chars: int, fail: Fail) -> list[str]:
    """`tokens` with names for empty ones; `fail(problem)` makes the error for what cannot be."""
    if not 1 <= len(tokens) <= MAX_TOKENS:
        raise fail(f"{len(tokens)} tokens, expected 1..{MAX_TOKENS}")
    lengths = list(map(len, tokens))
    if max(lengths) > max_chars:
        index = lengths.index(max(lengths))
        raise fail(f"token {index} has {lengths[index]} characters (at most {max_chars})")
    if min(lengths) == 0:
        tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        first: dict[str, int] = {}
        for index, token in enumerate(tokens):
            if first.setdefault(token, index) != index:
                raise fail(f"tokens {first[token]} and {index} are both {md.shown(token)}")
    try:
        "".join(tokens).encode("utf-8")
    except UnicodeEncodeError:
        bad = next(i for i, t in enumerate(tokens) if any("\ud800" <= c <= "\udfff" for c in t))
        raise fail(f"token {bad} is not valid UTF-8") from None
    return tokens


def check_types(types: list[int], tokens: list[str], fail: Fail) -> None:
    """Every type must be known, and every byte token name a byte."""
    for index, kind in enumerate(types):
        if not 0 <= kind <= BYTE:
            raise fail(f"token {index} has type {kind}, expected 0..{BYTE}")
        if kind == BYTE and not _BYTE_TOKEN.match(tokens[index]):
            shown = md.shown(tokens[index])
            raise fail(f"byte token {index} is {shown}, expected <0x00>..<0xFF>")


def check_scores(scores: list[float], fail: Fail) -> None:
    """Scores order the merges, so each must be a number."""
    bad = next((index for index, score in enumerate(scores) if score != score), None)
    if bad is not None:
        raise fail(f"element {bad} is not a number")


def _read_merges(gguf: Any, key: str, tokens: list[str]) -> list[tuple[str, str]]:
    """Pairs of tokens in order of priority; each entry is "left right"."""
    entries = md.get_list(gguf, key, str)
    # A left part may itself begin with a space, hence the search from the second character.
    cuts = [entry.find(" ", 1) for entry in entries]
    pairs = [(entry[:cut], entry[cut + 1 :]) for entry, cut in zip(entries, cuts, strict=True)]
    known = set(tokens)
    for index, (left, right) in enumerate(pairs):
        if left in known and right in known and left + right in known:
            continue
        if cuts[index] < 0 or not right:
            problem = f"merge {index} is {md.shown(entries[index])}, expected 'left right'"
        else:
            unknown = next(part for part in (left, right, left + right) if part not in known)
            problem = f"merge {index} names {md.shown(unknown)}, which is no token"
        raise md.fail(gguf, key, problem)
    return pairs


def _read_special(gguf: Any, prefix: str, kind: str, count: int) -> dict[str, int]:
    special = {}
    for name, key, default, needed in _SPECIAL:
        # 2^32 - 1 is how converters write "none" into an unsigned field.
        value = md.get_int(gguf, prefix + key, -1, 2**32 - 1, default=None)
        if value is None and kind == "llama" and default is not None and default < count:
            value = default
        if value is None or value in (-1, 2**32 - 1):
            continue
        if value < count:
            special[name] = value
        elif needed:
            raise md.fail(
                gguf, prefix + key, f"{value} is outside the vocabulary of {count} tokens"
            )
        else:
            log.warning(
                "%s: %s%s: %d is outside the vocabulary of %d tokens; not used",
                md.file_name(gguf), prefix, key, value, count,
            )  # fmt: skip
    return special
