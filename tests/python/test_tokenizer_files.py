"""Hugging Face folders as data: tokenizers and chat templates."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import Metadata, field, spm_model, tiktoken_ranks, tiny_bpe, tiny_spm, varint

from ktransformers.checkpoint.config_files import open_folder
from ktransformers.checkpoint.tokenizer import build_tokenizer
from ktransformers.checkpoint.tokenizer_spm_model import read_spm_model
from ktransformers.errors import UserError

TEXTS = ["", "hello world", " hello", "héllo 🦙\n\n  world", "<|im_end|>hello<think>", "<s>hello"]
EMPTY = Metadata({"general.architecture": "llama"}, "other.gguf")

ADDED = {
    "266": {"content": "<|begin|>", "special": True, "normalized": False},
    "267": {"content": "<|im_end|>", "special": True, "normalized": False},
    "268": {"content": "<|im_start|>", "special": True, "normalized": False},
    "269": {"content": "<think>", "special": False, "normalized": False},
}
SETTINGS = {
    "added_tokens_decoder": ADDED,
    "bos_token": {"__type": "AddedToken", "content": "<|begin|>"},
    "eos_token": "<|im_end|>",
    "auto_map": {"AutoTokenizer": ["evil--tokenizer.Evil", None]},
    "tokenizer_class": "Evil",
}


def folder(path, **files):
    """Writes files into `path`; dicts as JSON, "__" in a name stands for a dot."""
    for name, content in files.items():
        file = path / name.replace("__", ".")
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def backend_json(gguf) -> str:
    return build_tokenizer(gguf).backend_tokenizer.to_str()


def same(tokenizer, expected):
    for text in TEXTS:
        assert tokenizer.encode(text) == expected.encode(text)
        ids = expected.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == expected.decode(ids)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (expected.bos_token, expected.eos_token)
    assert len(tokenizer) == len(expected)


# ---- each form of file gives the same tokenizer as the GGUF metadata of the same vocabulary ----


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm])
def test_tokenizer_json(make, tmp_path):
    gguf = make(add_bos_token=True)
    expected = build_tokenizer(gguf)
    settings = {"bos_token": expected.bos_token, "eos_token": expected.eos_token}
    folder(tmp_path, tokenizer__json=backend_json(gguf), tokenizer_config__json=settings)
    same(build_tokenizer(EMPTY, tmp_path), expected)


def test_sentencepiece_model(tmp_path):
    gguf = tiny_spm()
    folder(tmp_path, tokenizer__model=spm_model(gguf))
    same(build_tokenizer(EMPTY, tmp_path), build_tokenizer(gguf))


def test_sentencepiece_model_with_added_tokens(tmp_path):
    added = {"274": {"content": "<|user|>", "special": True}, "280": {"content": "<|end|>"}}
    settings = {"added_tokens_decoder": added, "eos_token": "<|user|>", "add_bos_token": False}
    folder(tmp_path, tokenizer__model=spm_model(tiny_spm()), tokenizer_config__json=settings)
    tokenizer = build_tokenizer(EMPTY, tmp_path)
    assert tokenizer.encode("<|user|>hello<|end|>")[::2] == [274, 280]
    assert tokenizer.eos_token_id == 274 and len(tokenizer) == 281
    assert tokenizer.encode("[PAD277]") != [277]


@pytest.mark.parametrize("name", ["tiktoken.model", "tokenizer.model", "some.tiktoken"])
def test_tiktoken_ranks(name, tmp_path):
    gguf = tiny_bpe()
    folder(tmp_path, tokenizer_config__json=SETTINGS)
    (tmp_path / name).write_bytes(tiktoken_ranks(gguf, 266))
    same(build_tokenizer(gguf, tmp_path), build_tokenizer(gguf))


def test_vocab_and_merges(tmp_path):
    gguf = tiny_bpe()
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    merges = "#version: 0.2\n" + "\n".join(gguf.metadata["tokenizer.ggml.merges"]) + "\n"
    vocab = {token: token_id for token_id, token in enumerate(tokens[:266])}
    folder(tmp_path, vocab__json=vocab, merges__txt=merges, tokenizer_config__json=SETTINGS)
    same(build_tokenizer(gguf, tmp_path), build_tokenizer(gguf))


def test_the_model_type_tells_the_cut_where_nothing_else_does(tmp_path):
    folder(tmp_path, tokenizer_config__json=SETTINGS, config__json={"model_type": "qwen3"})
    (tmp_path / "tiktoken.model").write_bytes(tiktoken_ranks(tiny_bpe(), 266))
    same(build_tokenizer(EMPTY, tmp_path), build_tokenizer(tiny_bpe(pre="qwen2")))
    folder(tmp_path, config__json={"model_type": "nonesuch"})
    with pytest.raises(UserError, match="how a 'nonesuch' model cuts text is not known"):
        build_tokenizer(EMPTY, tmp_path)


@pytest.mark.parametrize(
    "settings, adds",
    [
        ({}, True),  # tokenizer.json's own post-processor decides
        ({"add_bos_token": False}, False),
        ({"add_bos_token": True}, True),
        ({"tokenizer_class": "LlamaTokenizerFast"}, True),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, False),
    ],
)
def test_who_decides_about_the_begin_token(settings, adds, tmp_path):
    settings = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"} | settings
    data = backend_json(tiny_bpe(add_bos_token=True))
    folder(tmp_path, tokenizer__json=data, tokenizer_config__json=settings)
    assert (build_tokenizer(EMPTY, tmp_path).encode("hello")[0] == 266) == adds


def test_a_folder_without_tokenizer_files_leaves_it_to_the_gguf(tmp_path, caplog):
    same(build_tokenizer(tiny_bpe(), tmp_path), build_tokenizer(tiny_bpe()))
    assert "no tokenizer files; using the GGUF's tokenizer" in caplog.text


def test_truncation_and_padding_of_tokenizer_json_are_not_kept(tmp_path):
    data = json.loads(backend_json(tiny_bpe()))
    data["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    folder(tmp_path, tokenizer__json=data)
    assert len(build_tokenizer(EMPTY, tmp_path).encode("hello hello hello hello")) == 4


# ---- chat templates of a folder ----


def test_templates_of_a_folder_win(tmp_path):
    gguf = tiny_bpe()
    gguf.metadata["tokenizer.chat_template"] = "GGUF"
    assert build_tokenizer(gguf, tmp_path).chat_template == "GGUF"
    listed = [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]
    folder(tmp_path, tokenizer_config__json={"chat_template": listed})
    assert build_tokenizer(gguf, tmp_path).chat_template == {"default": "A", "rag": "B"}
    folder(tmp_path, tokenizer_config__json={"chat_template": "A"})
    assert build_tokenizer(gguf, tmp_path).chat_template == "A"
    folder(tmp_path, chat_template__json={"chat_template": "C"})
    assert build_tokenizer(gguf, tmp_path).chat_template == "C"
    folder(tmp_path, chat_template__jinja="D")
    assert build_tokenizer(gguf, tmp_path).chat_template == "D"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("E")
    assert build_tokenizer(gguf, tmp_path).chat_template == {"default": "D", "tools": "E"}


# ---- what is refused ----

LONG_RANK = b"QQ== 0\nQUE= 0\n"
BAD_FILES = {
    "no JSON": ({"tokenizer__json": "{"}, "cannot be used"),
    "JSON of something else": ({"tokenizer__json": "[]"}, "cannot be used"),
    "merge of unknown token": (
        {"tokenizer__json": backend_json(tiny_bpe()).replace('"hell"', '"hexx"')},
        "cannot be used",
    ),
    "settings no JSON": ({"tokenizer_config__json": "{'a': 1}"}, "no JSON at line 1, column 2"),
    "settings a list": ({"tokenizer_config__json": "[]"}, "expected a JSON object"),
    "settings nested deeply": ({"tokenizer_config__json": "[" * 100_000}, "nested too deeply"),
    "settings not UTF-8": ({"tokenizer_config__json": b'{"a": "\xff"}'}, "not UTF-8 at byte 7"),
    "settings too large": ({"special_tokens_map__json": b" " * (5 << 20)}, "larger than 4194304"),
    "added id no number": (
        {"tokenizer_config__json": {"added_tokens_decoder": {"-1": {"content": "x"}}}},
        "added_tokens_decoder: '-1'",
    ),
    "added id huge": (
        {"tokenizer_config__json": {"added_tokens_decoder": {"999999999": {"content": "x"}}}},
        "added_tokens_decoder: '999999999'",
    ),
    "added token no text": (
        {"tokenizer_config__json": {"added_tokens_decoder": {"1": {"content": 5}}}},
        "added_tokens_decoder: '1'",
    ),
    "added_tokens.json": ({"added_tokens__json": {"x": "1"}}, "'x': '1' is no token and id"),
    "template of a number": (
        {"tokenizer_config__json": {"chat_template": [{"name": "default", "template": 1}]}},
        "is no name and template",
    ),
    "template too large": ({"chat_template__jinja": "x" * 300_000}, "300000 characters, at most"),
    "empty SentencePiece": ({"tokenizer__model": b""}, "no pieces"),
    "SentencePiece is HTML": ({"tokenizer__model": b"<!doctype html>"}, "not a SentencePiece"),
    "SentencePiece cut off": (
        {"tokenizer__model": spm_model(tiny_spm())[:-1]},
        "ends behind the file",
    ),
    "SentencePiece unigram": ({"tokenizer__model": spm_model(tiny_spm(), 1)}, "that is not BPE"),
    "SentencePiece charsmap": (
        {"tokenizer__model": spm_model(tiny_spm(), charsmap=b"x")},
        "normalises characters by a table",
    ),
    "huge length": ({"tokenizer__model": b"\x0a" + varint(2**62)}, "ends behind the file"),
    "endless number": ({"tokenizer__model": b"\x0a" + b"\xff" * 40}, "more than 64 bits"),
    "number as message": ({"tokenizer__model": field(1, 7)}, "a number stands where"),
    "piece of wrong bytes": ({"tokenizer__model": field(1, field(1, b"\xff"))}, "not a Sentence"),
    "score of wrong size": (
        {"tokenizer__model": field(1, field(1, "a") + field(2, b"abc"))},
        "not a SentencePiece",
    ),
    "score a number": (
        {"tokenizer__model": field(1, field(1, "a") + field(2, 3))},
        "not a SentencePiece",
    ),
    "piece of an unknown type": (
        {"tokenizer__model": field(1, field(1, "a") + field(3, 9)) + field(2, field(3, 2))},
        "token 0 has type 9",
    ),
    "same piece twice": (
        {"tokenizer__model": 2 * field(1, field(1, "a")) + field(2, field(3, 2))},
        "tokens 0 and 1 are both 'a'",
    ),
    "bos a text": (
        {"tokenizer__model": field(1, field(1, "a")) + field(2, field(3, 2) + field(41, "x"))},
        "stands where a number belongs",
    ),
    "rank twice": ({"tiktoken__model": LONG_RANK}, "line 2: rank 0 is taken"),
    "rank missing": ({"tiktoken__model": b"QQ== 1\n"}, "ranks are not 0..0"),
    "rank no number": ({"tiktoken__model": b"QQ== x\n"}, "line 1 is not 'base64 rank'"),
    "rank no base64": ({"tiktoken__model": b"Q 0\n"}, "line 1 is not 'base64 rank'"),
    "token twice": ({"tiktoken__model": b"QQ== 0\nQQ== 1\n"}, "each token once"),
    "vocab ids": ({"vocab__json": {"a": 5}, "merges__txt": ""}, "ids are not 0..0"),
    "vocab a list": ({"vocab__json": "[]", "merges__txt": ""}, "expected an object"),
    "merges unknown": (
        {"vocab__json": {"a": 0}, "merges__txt": "a b\n"},
        "line 1 names what vocab.json lacks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_line(case, tmp_path):
    files, expected = BAD_FILES[case]
    folder(tmp_path, **files)
    with pytest.raises(UserError) as error:
        build_tokenizer(tiny_bpe(), tmp_path)
    message = str(error.value)
    assert expected in message and str(tmp_path) in message
    assert "\n" not in message and len(message) < 600


@pytest.mark.parametrize("role", ["bos", "eos", "pad", "unk"])
def test_special_tokens_outside_the_vocabulary(role, tmp_path):
    settings = {"eos_token": "<|im_end|>", f"{role}_token": "<|nowhere|>"}
    folder(tmp_path, tokenizer__json=backend_json(tiny_bpe()), tokenizer_config__json=settings)
    if role in ("bos", "eos"):
        with pytest.raises(UserError, match=f"{role}_token '<|nowhere|>' is not in the vocab"):
            build_tokenizer(EMPTY, tmp_path)
    else:
        assert len(build_tokenizer(EMPTY, tmp_path)) == 270


@pytest.mark.parametrize("place", [0, 1, 2, 5, 20, 260, 300])
def test_every_damage_to_a_sentencepiece_model_is_an_error_or_a_model(place):
    data = bytearray(spm_model(tiny_spm()))
    for value in range(256):
        data[place] = value
        try:
            found = read_spm_model(bytes(data), "x.model")
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(type(kind) is int for kind in found["types"])
            assert len(found["tokens"]) == len(found["scores"]) == len(found["types"])


@pytest.mark.parametrize("path", ["/nonexistent/folder", "/dev/null"])
def test_no_folder(path):
    with pytest.raises(UserError, match="model_path is a folder or a Hub name"):
        open_folder(path)


@given(data=st.binary(max_size=200), prefix=st.sampled_from([b"", b"\x0a\x05", b"\x12", b"\x1a"]))
@settings(max_examples=500)
def test_any_bytes_are_an_error_or_a_sentencepiece_model(data, prefix):
    try:
        read_spm_model(prefix + data, "x.model")
    except UserError as error:
        assert str(error).startswith("x.model: ")
