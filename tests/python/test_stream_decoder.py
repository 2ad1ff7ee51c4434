"""Pieces of a stream: joined they are the whole text, and each is whole characters."""

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import tiny_bpe, tiny_spm

from ktransformers.checkpoint.stream_decoder import StreamDecoder
from ktransformers.checkpoint.tokenizer import build_tokenizer

TOKENIZERS = {
    "byte level": build_tokenizer(tiny_bpe()),
    "byte fallback": build_tokenizer(tiny_spm()),
    "byte fallback, no prefix": build_tokenizer(tiny_spm(add_space_prefix=False)),
}
BYTE_LEVEL = TOKENIZERS["byte level"]
BYTE_FALLBACK = TOKENIZERS["byte fallback"]

both = pytest.mark.parametrize("name", TOKENIZERS)


def pieces(tokenizer, ids, skip=True, chunks=None):
    """All pieces, pushed one id at a time or in chunks of the given sizes."""
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    out, start = [], 0
    for size in chunks or [1] * len(ids):
        out.append(decoder.push(ids[start : start + size]))
        start += size
    out.append(decoder.push(ids[start:]))
    out.append(decoder.finish())
    return out


@both
@given(text=st.text(), skip=st.booleans(), chunks=st.lists(st.integers(0, 5), max_size=20))
def test_joined_pieces_are_the_decoded_text(name, text, skip, chunks):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces(tokenizer, ids, skip, chunks)) == whole
    # "▁" is how SentencePiece writes a space, so it cannot come back; nor can skipped tokens.
    assert whole == text or any(t in text for t in ["▁", *tokenizer.get_added_vocab()])


@given(ids=st.lists(st.integers(0, 275), max_size=40), skip=st.booleans())
@settings(max_examples=400)
def test_any_ids_of_a_byte_level_vocabulary(ids, skip):
    """Random ids are mostly invalid UTF-8, and some are outside the vocabulary."""
    whole = BYTE_LEVEL.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces(BYTE_LEVEL, ids, skip)) == whole


def by_hand(ids, skip):
    """SentencePiece ids to text by the rule of the module's head, run of bytes by run of bytes."""
    tokens = [BYTE_FALLBACK.convert_ids_to_tokens(i) for i in ids]
    special = {"<s>", "</s>", "<unk>"} if skip else set()
    text, run = "", b""
    for token in [t for t in tokens if t not in special]:
        if token.startswith("<0x"):
            run += bytes.fromhex(token[3:5])
            continue
        text += run.decode("utf-8", "ktransformers.mark_bytes") + token.replace("▁", " ")
        run = b""
    text += run.decode("utf-8", "ktransformers.mark_bytes")
    return text[1:] if text.startswith(" ") else text


@given(ids=st.lists(st.integers(0, 273), max_size=40), skip=st.booleans())
@settings(max_examples=400)
def test_any_ids_of_a_byte_fallback_vocabulary(ids, skip):
    assert "".join(pieces(BYTE_FALLBACK, ids, skip)) == by_hand(ids, skip)


def test_a_character_leaves_with_its_last_byte():
    for tokenizer in (BYTE_LEVEL, TOKENIZERS["byte fallback, no prefix"]):
        ids = tokenizer.encode("é🦙", add_special_tokens=False)
        assert len(ids) == 6
        assert pieces(tokenizer, ids)[:6] == ["", "é", "", "", "", "🦙"]


@both
def test_an_unfinished_character_is_marked_at_the_end(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("a🦙", add_special_tokens=False)[:-1]
    marks = "\ufffd" if name == "byte level" else "\ufffd" * 3
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(ids) == "a"
    assert decoder.finish() == marks
    assert tokenizer.decode(ids) == "a" + marks


def test_a_decoder_may_be_used_again():
    decoder = StreamDecoder(BYTE_FALLBACK)
    ids = BYTE_FALLBACK.encode(" hello", add_special_tokens=False)
    assert [decoder.push(ids) + decoder.finish() for _ in range(2)] == [" hello"] * 2


def test_special_tokens_inside_a_character_do_not_break_it():
    first, second = BYTE_LEVEL.encode("é", add_special_tokens=False)
    ids = [first, BYTE_LEVEL.eos_token_id, second]
    assert "".join(pieces(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


def test_decoders_of_another_build_are_decoded_whole():
    from tokenizers import decoders

    tokenizer = build_tokenizer(tiny_spm())
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse()]
    )
    for text in ["", "hello", "é🦙 hello", "\ufffd", "a \ufffd  "]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.decode(ids)
        assert "".join(pieces(tokenizer, ids)) == whole
        assert whole.replace("▁", " ") == " " * bool(text) + text
        # Cut inside a character: whatever is decoded, nothing of it may be missing.
        assert "".join(pieces(tokenizer, ids[:-1])) == tokenizer.decode(ids[:-1])


def test_the_error_handler_marks_every_byte():
    assert b"a\xf0\x9f\xa6b".decode("utf-8", "ktransformers.mark_bytes") == "a\ufffd\ufffd\ufffdb"
    assert codecs.lookup_error("ktransformers.mark_bytes")
