"""Metadata to build tokenizers from: real vocabularies, and tiny ones made by hand."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import numpy as np

from tests.support.vocabulary import byte_characters

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / ".cache" / "token-vectors"
SEPARATOR = "\n__ggml_vocab_test__\n"


class Metadata:
    """What the tokenizer needs of a GGUF file: a mapping and a name for messages."""

    def __init__(self, values: dict, path: str = "hand-made.gguf"):
        self.metadata = values
        self.path = path

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    def but(self, **changes) -> Metadata:
        """A copy with keys of `tokenizer.ggml.` replaced; None removes one."""
        values = dict(self.metadata)
        for key, value in changes.items():
            values[f"tokenizer.ggml.{key}"] = value
        return Metadata({k: v for k, v in values.items() if v is not None}, self.path)


def vocabulary(name: str):
    """The vocabulary-only GGUF file `name` that comes with the vectors."""
    from ktransformers.checkpoint.gguf import GGUFFile

    return GGUFFile(VECTORS / f"ggml-vocab-{name}.gguf")


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """The (text, ids) pairs that come with the vocabulary `name`."""
    path = VECTORS / f"ggml-vocab-{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode("utf-8").split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    if texts[-1] == "":  # a separator ends the file
        texts.pop()
    if len(texts) != len(lines):
        raise ValueError(f"{path}: {len(texts)} texts for {len(lines)} lines of ids")
    return [
        (text, [int(word) for word in line.split()])
        for text, line in zip(texts, lines, strict=True)
    ]


def tiny_bpe(**changes) -> Metadata:
    """Byte-level: 256 bytes, some merges, three control tokens and a user-defined one."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"]
    whole = [m.replace(" ", "") for m in merges]
    special = ["<|begin|>", "<|im_end|>", "<|im_start|>", "<think>"]
    tokens = [*byte_characters(), *whole, *special]
    types = [1] * (256 + len(whole)) + [3, 3, 3, 4]
    values = {
        "general.architecture": "llama",
        "llama.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }
    return Metadata(values).but(**changes)


def tiny_spm(**changes) -> Metadata:
    """SentencePiece BPE: unk, bos, eos, 256 byte tokens, some pieces with falling scores."""
    pieces = [
        "▁",
        "h",
        "e",
        "l",
        "o",
        "a",
        "he",
        "ll",
        "hell",
        "hello",
        "▁hello",
        "aa",
        "aaa",
        "▁▁",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, "<think>"]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [4]
    scores = [0.0] * 259 + [-100.0] * 6 + [-float(i) for i in range(len(pieces) - 6)] + [0.0]
    values = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return Metadata(values).but(**changes)


def varint(number: int) -> bytes:
    """An unsigned number as protobuf writes it; negative ones as 64 bits."""
    number &= 2**64 - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, value) -> bytes:
    """One protobuf field: int as varint, float as 32 bits, str and bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def spm_model(gguf: Metadata, model_type: int = 2, charsmap: bytes = b"") -> bytes:
    """A SentencePiece model file with the vocabulary of `gguf`."""
    lists = (gguf.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    out = b""
    for token, score, kind in zip(*lists, strict=True):
        out += field(1, field(1, token) + field(2, float(score)) + field(3, int(kind)))
    trainer = field(3, model_type) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2)
    normalizer = field(1, "identity") + field(2, charsmap) + field(3, 1) + field(4, 0)
    return out + field(2, trainer + field(43, -1)) + field(3, normalizer)


def tiktoken_ranks(gguf: Metadata, count: int) -> bytes:
    """The first `count` tokens of a byte-level vocabulary as tiktoken's "base64 rank" lines."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    lines = []
    for rank, token in enumerate(gguf.metadata["tokenizer.ggml.tokens"][:count]):
        raw = bytes(byte_of[character] for character in token)
        lines.append(base64.b64encode(raw) + b" " + str(rank).encode())
    return b"\n".join(lines) + b"\n"
