"""Reads `tokenizer.model`, SentencePiece's protobuf file, as data and within bounds.

Only the fields that matter here are looked at (sentencepiece_model.proto):

    ModelProto      1 repeated SentencePiece, 2 TrainerSpec, 3 NormalizerSpec
    SentencePiece   1 piece (string), 2 score (float), 3 type
    TrainerSpec     3 model_type (2 = BPE), 40..43 unk, bos, eos, pad id
    NormalizerSpec  2 precompiled_charsmap, 3 add_dummy_prefix
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from ktransformers.checkpoint.tokenizer_vocab import MAX_TOKENS, NORMAL
from ktransformers.errors import UserError

_BPE = 2
_SIZES = {1: 8, 5: 4}  # wire types of fixed size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for count in range(10):
        if at >= len(data):
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, at
    raise ValueError("a number has more than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) pairs: an int for varints, the bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in _SIZES:
            size = _SIZES[wire]
        else:
            raise ValueError(f"field {key >> 3} has the unknown wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"field {key >> 3} ends behind the file")
        yield key >> 3, data[at : at + size]
        at += size


def _message(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number stands where text or a message belongs")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("text or a message stands where a number belongs")
    return value


def _signed(value: int) -> int:
    """Of an int32 as protobuf writes it, negative ones in 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def read_spm_model(data: bytes, where: str) -> dict[str, Any]:
    """Vocabulary fields of a SentencePiece BPE model: tokens, scores, types, special, prefix.

    Raises: UserError for what is no such file, or a model of another kind.
    """
    try:
        found = _read(memoryview(data))
    except (ValueError, UnicodeDecodeError, struct.error) as error:
        raise UserError(f"{where}: not a SentencePiece model: {error}") from error
    if not found["tokens"]:
        raise UserError(f"{where}: not a SentencePiece model: no pieces")
    if found.pop("model_type") != _BPE:
        raise UserError(f"{where}: a SentencePiece model that is not BPE; give a tokenizer.json")
    if found.pop("charsmap"):
        raise UserError(f"{where}: normalises characters by a table; give a tokenizer.json")
    return found


def _read(data: memoryview) -> dict[str, Any]:
    tokens, scores, types = [], [], []
    trainer: dict[int, Any] = {3: 1, 40: 0, 41: 1, 42: 2, 43: -1}
    normalizer: dict[int, Any] = {2: memoryview(b""), 3: 1}
    for number, value in _fields(data):
        if number == 1:
            piece: dict[int, Any] = {2: memoryview(bytes(4)), 3: NORMAL}
            piece.update(_fields(_message(value)))
            tokens.append(bytes(_message(piece.get(1))).decode("utf-8"))
            scores.append(struct.unpack("<f", _message(piece[2]))[0])
            types.append(_number(piece[3]))
            if len(tokens) > MAX_TOKENS:
                raise ValueError(f"more than {MAX_TOKENS} pieces")
        elif number == 2:
            trainer.update(_fields(_message(value)))
        elif number == 3:
            normalizer.update(_fields(_message(value)))
    special = {}
    for role, number in (("unk", 40), ("bos", 41), ("eos", 42), ("pad", 43)):
        token_id = _signed(_number(trainer[number]))
        if 0 <= token_id < len(tokens):
            special[role] = token_id
    return {
        "tokens": tokens,
        "scores": scores,
        "types": types,
        "special": special,
        "add_space_prefix": _number(normalizer[3]) != 0,
        "model_type": _number(trainer[3]),
        "charsmap": len(_message(normalizer[2])) > 0,
    }
