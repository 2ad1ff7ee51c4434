"""Token ids to text while they arrive: only whole characters leave, and no byte is lost.

A character may be spread over several tokens (emoji, Chinese in a byte-level vocabulary, byte
tokens of a SentencePiece one). Each token stands for bytes; a UTF-8 decoder that keeps an
unfinished character until its last byte has come turns them into text. Bytes that can never become
a character come out as U+FFFD.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def _one_mark_per_byte(error: UnicodeError) -> tuple[str, int]:
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("ktransformers.mark_bytes", _one_mark_per_byte)


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies (GPT-2's table of printable stand-ins)."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte if byte in kept else next(others)): byte for byte in range(256)}


class StreamDecoder:
    """Text pieces of one growing sequence of ids: `push` while it grows, `finish` at its end.

    The pieces joined equal `tokenizer.decode(ids, skip_special_tokens=...)`. One difference: where
    byte tokens of a SentencePiece vocabulary form invalid UTF-8, that function marks every byte of
    the run, this one only the bytes that belong to no character (it cannot know what comes later).

    tokenizer: a `PreTrainedTokenizerFast`; its decoder decides how tokens become bytes. keep:
    special tokens that are shown although the others are skipped.
    """

    def __init__(
        self, tokenizer: Any, skip_special_tokens: bool = True, keep: frozenset[str] = frozenset()
    ):
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._keep = keep
        backend = tokenizer.backend_tokenizer
        self._added = backend.get_added_tokens_decoder()
        self._token = backend.id_to_token
        kind, self._strip = _decoder_kind(backend)
        self._bytes_of = {
            "byte_level": self._byte_level,
            "byte_fallback": self._byte_fallback,
            "other": None,
        }[kind]
        self._alphabet = byte_alphabet() if kind == "byte_level" else {}
        self._errors = "replace" if kind == "byte_level" else "ktransformers.mark_bytes"
        self._cache: dict[int, tuple[bytes, bool]] = {}
        self._reset()

    def _reset(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(self._errors)
        self._to_strip = self._strip
        self._ids: list[int] = []
        self._sent = 0

    def push(self, ids: int | Iterable[int]) -> str:
        """Text that `ids`, appended to what was pushed before, complete; "" while waiting."""
        ids = [ids] if isinstance(ids, int) else list(ids)
        if self._bytes_of is None:
            return self._push_whole(ids)
        pieces = []
        for token_id in ids:
            cached = self._cache.get(token_id)
            if cached is None:
                cached = self._cache[token_id] = self._lookup(token_id)
            raw, ends_run = cached
            if ends_run and raw:
                # A character cannot continue from a byte token into a token of text.
                pieces.append(self._utf8.decode(b"", final=True))
                self._utf8.reset()
            pieces.append(self._utf8.decode(raw))
        return self._stripped("".join(pieces))

    def bytes_of(self, token_id: int) -> bytes:
        """What one token alone stands for; part of a character, perhaps."""
        if self._bytes_of is None:
            return self._decode([token_id]).encode("utf-8")
        return self._lookup(token_id)[0]

    def finish(self) -> str:
        """What is still held back, with U+FFFD for an unfinished character; then starts anew."""
        if self._bytes_of is None:
            text = self._decode(self._ids)[self._sent :]
        else:
            text = self._stripped(self._utf8.decode(b"", final=True))
        self._reset()
        return text

    def _stripped(self, text: str) -> str:
        while self._to_strip and text:
            if text[0] != " ":
                self._to_strip = 0
                break
            text, self._to_strip = text[1:], self._to_strip - 1
        return text

    def _lookup(self, token_id: int) -> tuple[bytes, bool]:
        """Bytes of one token, and whether it ends a run of byte tokens before it."""
        added = self._added.get(token_id)
        if added is not None and added.content in self._keep:
            return added.content.encode("utf-8"), True
        if self._skip_special and added is not None and added.special:
            return b"", False
        token = self._token(token_id)
        return (b"", False) if token is None else self._bytes_of(token)

    def _byte_level(self, token: str) -> tuple[bytes, bool]:
        try:
            return bytes([self._alphabet[character] for character in token]), False
        except KeyError:
            return token.encode("utf-8"), False

    def _byte_fallback(self, token: str) -> tuple[bytes, bool]:
        if match := _BYTE_TOKEN.match(token):
            return bytes([int(match[1], 16)]), False
        return token.replace("▁", " ").encode("utf-8"), True

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)

    def _push_whole(self, ids: list[int]) -> str:
        """For decoders of another build: decode all so far, hold back what may still change."""
        self._ids.extend(ids)
        text = self._decode(self._ids)
        stable = len(text.rstrip("\ufffd "))
        piece = text[self._sent : stable]
        self._sent = max(self._sent, stable)
        return piece


def _decoder_kind(backend: Any) -> tuple[str, int]:
    """How the backend's decoder works ("byte_level", "byte_fallback", "other"), spaces to strip."""
    decoder = backend.decoder
    if decoder is None:
        return "other", 0
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return "byte_level", 0
    strip = 0
    if names and names[-1] == "Strip":
        last = steps[-1]
        if last["content"] != " " or last["stop"] != 0:
            return "other", 0
        strip, names = last["start"], names[:-1]
    replaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    if names == ["Replace", "ByteFallback", "Fuse"] and steps[0] == replaces:
        return "byte_fallback", strip
    return "other", 0
