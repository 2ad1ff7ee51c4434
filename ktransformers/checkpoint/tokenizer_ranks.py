"""Byte-level vocabularies in the two older file forms: tiktoken ranks, vocab.json + merges.txt."""

from __future__ import annotations

import base64
import binascii
import json

from ktransformers.checkpoint.stream_decoder import byte_alphabet
from ktransformers.checkpoint.tokenizer_vocab import MAX_TOKEN_CHARS, MAX_TOKENS
from ktransformers.errors import UserError

_STAND_IN = {byte: character for character, byte in byte_alphabet().items()}


def looks_like_ranks(data: bytes) -> bool:
    """Whether `data` begins as a tiktoken file does: a base64 word, a space, a number."""
    word, _, rest = data[:200].partition(b"\n")[0].partition(b" ")
    return bool(word) and rest.strip().isdigit()


def read_ranks(data: bytes, where: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by rank, in the byte alphabet, and the merges that give tiktoken's result.

    tiktoken joins the neighbours whose concatenation has the lowest rank, however that is cut;
    hence every cut of every token is a merge, in order of the whole's rank.
    Raises: UserError naming the line.
    """
    words: dict[int, str] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        word, _, rank = line.partition(b" ")
        try:
            raw, index = base64.b64decode(word, validate=True), int(rank)
        except (binascii.Error, ValueError):
            raise UserError(f"{where}: line {number} is not 'base64 rank'") from None
        if not raw or len(raw) > MAX_TOKEN_CHARS["llama"]:
            raise UserError(f"{where}: line {number}: a token of {len(raw)} bytes")
        if index in words or not 0 <= index < MAX_TOKENS:
            raise UserError(f"{where}: line {number}: rank {index} is taken or out of range")
        words[index] = "".join(_STAND_IN[byte] for byte in raw)
    tokens = [words[index] for index in sorted(words)]
    if sorted(words) != list(range(len(words))) or len(set(tokens)) != len(tokens):
        raise UserError(f"{where}: ranks are not 0..{len(words) - 1}, each token once")

    rank_of = {token: index for index, token in enumerate(tokens)}
    found = []
    for index, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = rank_of.get(token[:cut]), rank_of.get(token[cut:])
            if left is not None and right is not None:
                found.append((index, left, right))
    found.sort()
    return tokens, [(tokens[left], tokens[right]) for _, left, right in found]


def read_vocab_and_merges(
    vocab: str, merges: str, where: str
) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by id of vocab.json, pairs of merges.txt ("left right" lines, "#version" first)."""
    try:
        ids = json.loads(vocab)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}/vocab.json: no JSON: {error}") from error
    if not isinstance(ids, dict) or not ids:
        raise UserError(f"{where}/vocab.json: expected an object of token: id")
    if sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise UserError(f"{where}/vocab.json: ids are not 0..{len(ids) - 1}, each once")
    tokens = sorted(ids, key=lambda token: int(ids[token]))
    pairs = []
    for number, line in enumerate(merges.split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if any(part not in ids for part in (left, right, left + right)):
            raise UserError(f"{where}/merges.txt: line {number} names what vocab.json lacks")
        pairs.append((left, right))
    return tokens, pairs
