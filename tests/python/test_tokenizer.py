"""Tokenizers built from metadata: what they produce, and what they refuse."""

import numpy as np
import pytest
from tokenizer_cases import Metadata, tiny_bpe, tiny_spm

from ktransformers.checkpoint.tokenizer import build_tokenizer
from ktransformers.checkpoint.tokenizer_vocab import read_vocabulary
from ktransformers.errors import UserError

TEXTS = ["", "hello", "hello world", "  hello\n\n", "héllo 🦙 世界", "\x00\x7f", "a" * 70]


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm])
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(make, text):
    tokenizer = build_tokenizer(make())
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_bpe_merges_in_order_of_priority():
    tokenizer = build_tokenizer(tiny_bpe())
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "hello world")) == ["hello", "Ġworld"]


def test_spm_merges_by_score_and_falls_back_to_bytes():
    tokenizer = build_tokenizer(tiny_spm())
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "hello")) == ["▁hello"]
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "é")) == ["▁", "<0xC3>", "<0xA9>"]


def test_spm_joins_runs_from_the_left():
    tokenizer = build_tokenizer(tiny_spm(add_space_prefix=False))
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "aaaaa")) == ["aa", "aaa"]


def test_space_prefix_can_be_switched_off():
    tokenizer = build_tokenizer(tiny_spm(add_space_prefix=False))
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "hello")) == ["hello"]
    assert tokenizer.decode(ids(tokenizer, " hello")) == " hello"


def test_special_tokens_are_found_in_the_text():
    tokenizer = build_tokenizer(tiny_bpe())
    found = tokenizer.convert_ids_to_tokens(ids(tokenizer, "<|im_start|>hello<think><|im_end|>"))
    assert found == ["<|im_start|>", "hello", "<think>", "<|im_end|>"]
    text = tokenizer.decode(tokenizer.convert_tokens_to_ids(found), skip_special_tokens=True)
    assert text == "hello<think>"


@pytest.mark.parametrize("make, begin", [(tiny_bpe, "<|begin|>"), (tiny_spm, "<s>")])
@pytest.mark.parametrize("add_bos, add_eos", [(True, False), (True, True), (False, True)])
def test_begin_and_end_tokens(make, begin, add_bos, add_eos):
    tokenizer = build_tokenizer(make(add_bos_token=add_bos, add_eos_token=add_eos))
    inner = ids(tokenizer, "hello")
    expected = [tokenizer.bos_token_id] * add_bos + inner + [tokenizer.eos_token_id] * add_eos
    assert tokenizer.bos_token == begin
    assert tokenizer.encode("hello") == expected


def test_defaults_of_begin_tokens_follow_the_kind():
    assert read_vocabulary(tiny_spm()).add_bos
    assert not read_vocabulary(tiny_bpe()).add_bos
    assert read_vocabulary(tiny_bpe(pre="llama-bpe")).add_bos


def test_attributes_that_generation_reads():
    tokenizer = build_tokenizer(tiny_bpe())
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == 128
    assert len(tokenizer) == len(tiny_bpe().metadata["tokenizer.ggml.tokens"])


def test_batches_are_padded_on_the_left():
    tokenizer = build_tokenizer(tiny_bpe())
    batch = tokenizer(["hello hello", "hello"], padding=True)
    assert batch["attention_mask"] == [[1, 1], [0, 1]]


def test_end_ids_include_end_texts_the_metadata_do_not_name():
    vocab = read_vocabulary(tiny_bpe(eos_token_id=None))
    assert vocab.end_ids() == [vocab.tokens.index("<|im_end|>")]


def test_nfc_is_applied_where_the_family_does():
    composed, decomposed = "\u00e9", "e\u0301"
    qwen, gpt = build_tokenizer(tiny_bpe(pre="qwen2")), build_tokenizer(tiny_bpe())
    assert ids(qwen, composed) == ids(qwen, decomposed)
    assert ids(gpt, composed) != ids(gpt, decomposed)


@pytest.mark.parametrize(
    "pre, expected",
    [("deepseek-v3", ["111", "1"]), ("qwen2", ["1"] * 4), ("gpt-2", ["11", "11"])],
)
def test_digits_are_cut_as_the_family_cuts_them(pre, expected):
    gguf = tiny_bpe(pre=pre)
    tokens = [*gguf.metadata["tokenizer.ggml.tokens"], "11", "111"]
    types = np.append(gguf.metadata["tokenizer.ggml.token_type"], [1, 1])
    gguf = gguf.but(tokens=tokens, token_type=types, merges=["1 1", "11 1"])
    tokenizer = build_tokenizer(gguf)
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "1111")) == expected


def test_begin_token_may_be_written_like_a_template():
    tokenizer = build_tokenizer(with_token(tiny_bpe(add_bos_token=True), 266, "$A:1 b"))
    assert tokenizer.encode("hello")[0] == 266 == tokenizer.bos_token_id


def test_padding_entries_are_not_matched_in_text():
    gguf = tiny_bpe()
    tokens = [*gguf.metadata["tokenizer.ggml.tokens"], "[PAD270]"]
    types = [*gguf.metadata["tokenizer.ggml.token_type"].tolist(), 4]
    tokenizer = build_tokenizer(gguf.but(tokens=tokens, token_type=types))
    assert len(ids(tokenizer, "[PAD270]")) > 1


def test_empty_tokens_keep_their_place():
    tokens = list(tiny_bpe().metadata["tokenizer.ggml.tokens"])
    tokens[40] = tokens[41] = ""
    vocab = read_vocabulary(tiny_bpe(tokens=tokens))
    assert vocab.tokens[40:42] == ["[EMPTY_40]", "[EMPTY_41]"]


# ---- what is refused ----


def with_token(gguf: Metadata, index: int, text) -> Metadata:
    tokens = list(gguf.metadata["tokenizer.ggml.tokens"])
    tokens[index] = text
    return gguf.but(tokens=tokens)


REFUSED = {
    "no tokens": (tiny_bpe(tokens=None), "tokenizer.ggml.tokens: missing"),
    "empty token list": (tiny_bpe(tokens=[]), "0 tokens"),
    "tokens are numbers": (tiny_bpe(tokens=[1, 2, 3]), "element 0: expected str, got 1"),
    "tokens are one string": (tiny_bpe(tokens="abc"), "expected an array"),
    "duplicate token": (with_token(tiny_bpe(), 7, "hello"), "tokens 7 and 259 are both 'hello'"),
    "surrogate": (with_token(tiny_bpe(), 7, "\ud800"), "token 7 is not valid UTF-8"),
    "endless token": (with_token(tiny_bpe(), 7, "x" * 5000), "token 7 has 5000 characters"),
    "long scored token": (with_token(tiny_spm(), 270, "x" * 400), "token 270 has 400 characters"),
    "no kind": (tiny_bpe(model=None), "tokenizer.ggml.model: missing"),
    "unknown kind": (tiny_bpe(model="bert"), "'bert' is not supported (known: gpt2, llama)"),
    "unknown pre-tokenizer": (tiny_bpe(pre="nonesuch"), "'nonesuch' is not known (known: "),
    "no merges": (tiny_bpe(merges=None), "tokenizer.ggml.merges: missing"),
    "merge of unknown token": (tiny_bpe(merges=["h e", "q hé"]), "merge 1 names 'hé'"),
    "merge into unknown token": (tiny_bpe(merges=["e h"]), "merge 0 names 'eh'"),
    "merge of one part": (tiny_bpe(merges=["hello"]), "merge 0 is 'hello'"),
    "merge of nothing": (tiny_bpe(merges=["h "]), "merge 0 is 'h '"),
    "empty merge": (tiny_bpe(merges=[""]), "merge 0 is ''"),
    "short types": (tiny_bpe(token_type=[1, 1]), "2 elements, expected"),
    "type out of range": (
        tiny_bpe(token_type=[1] * 269 + [9]),
        "token 269 has type 9",
    ),
    "float types": (tiny_bpe(token_type=[1.5] * 270), "element 0: expected int, got 1.5"),
    "no scores": (tiny_spm(scores=None), "tokenizer.ggml.scores: missing"),
    "short scores": (tiny_spm(scores=[0.0]), "1 elements, expected"),
    "scores not numbers": (tiny_spm(scores=[float("nan")] * 274), "element 0 is not a number"),
    "negative byte token": (with_token(tiny_spm(), 3, "<0x-1>"), "byte token 3 is '<0x-1>'"),
    "byte token of three digits": (with_token(tiny_spm(), 3, "<0x100>"), "byte token 3"),
    "byte token of spaces": (with_token(tiny_spm(), 3, "<0x 1>"), "byte token 3"),
    "bos outside": (tiny_bpe(bos_token_id=270), "270 is outside the vocabulary of 270 tokens"),
    "eos outside": (tiny_spm(eos_token_id=2**31), "2147483648 is outside the vocabulary"),
    "eos negative": (tiny_bpe(eos_token_id=-5), "-5 is outside"),
    "eos a string": (tiny_bpe(eos_token_id="2"), "expected an integer, got '2'"),
    "eos true": (tiny_bpe(eos_token_id=True), "expected an integer, got True"),
    "add_bos a number": (tiny_bpe(add_bos_token=1), "expected true or false, got 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_metadata_is_refused_in_one_line(case):
    gguf, expected = REFUSED[case]
    with pytest.raises(UserError) as error:
        build_tokenizer(gguf)
    message = str(error.value)
    assert expected in message
    assert message.startswith("hand-made.gguf: tokenizer.ggml.")
    assert "\n" not in message and len(message) < 700


HOSTILE = [
    None, True, 0, 1, -1, 2**31, 2**64 - 1, 0.5, float("nan"), "", "x", "x" * 2000, "\udcff", [],
    [""], ["a", "a"], [0], [-1] * 270, [2**40] * 270, [0.5] * 270, ["a b"] * 3, [[1]], [None], {},
    np.zeros(270, np.int32), np.zeros(274, np.float32), np.full(274, np.inf, np.float32),
    np.zeros((2, 2)), b"x", object(),
]  # fmt: skip


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_any_value_under_any_key_is_an_error_or_a_tokenizer(make, value):
    gguf = make(
        unknown_token_id=0, padding_token_id=0, eot_token_id=0, eom_token_id=0, add_bos_token=True,
        add_eos_token=True, add_space_prefix=True,
    )  # fmt: skip
    gguf.metadata["tokenizer.chat_template"] = gguf.metadata["llama.context_length"] = None
    for key in gguf.metadata:
        if key == "general.architecture":
            continue
        try:
            tokenizer = build_tokenizer(Metadata(gguf.metadata | {key: value}))
        except UserError as error:
            # A list of another length is told by the list it should fit to.
            assert key in str(error) or "elements, expected" in str(error)
            assert "\n" not in str(error) and len(str(error)) < 700
        else:
            ids = tokenizer.encode("hello <|im_end|>é")
            assert all(0 <= i < len(tokenizer) for i in ids)
            tokenizer.decode(ids)


@pytest.mark.parametrize("value", [270, 2**32 - 1, -1])
def test_padding_id_outside_is_not_used(value, caplog):
    tokenizer = build_tokenizer(tiny_bpe(padding_token_id=value))
    assert tokenizer.pad_token == tokenizer.eos_token
    assert ("padding_token_id" in caplog.text) == (value == 270)


def test_nothing_heavy_is_imported_to_read_a_vocabulary(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; import ktransformers.checkpoint.tokenizer_vocab, "
        "ktransformers.checkpoint.tokenizer; "
        "print(sorted({'torch', 'transformers', 'tokenizers', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("make", [tiny_bpe, tiny_spm])
def test_saved_and_loaded_again(make, tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = build_tokenizer(make(add_bos_token=True))
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
