"""The pages on clients: every block runs against a real server with a real model."""

import shutil

import pytest

from tests.support import smollm2
from tests.support.pages import ROOT, blocks, run_blocks
from tests.support.serving import Server

HERE = ("openai", "anthropic", "ollama", "curl", "open-webui")
ELSEWHERE = ("langchain", "lm-eval")  # tests/tools/check_interop.sh: many packages
SAYS = {
    "openai": ["Tokyo", '"city"', "name="],
    "anthropic": ["Tokyo", "'city'"],
    "ollama": ["Tokyo", '"red"'],
    "curl": ["Tokyo", "[DONE]", "token_logprobs", "ktransformers_steps_total"],
    "open-webui": ["[DONE]", '"done":true'],
}


@pytest.fixture(scope="module")
def server():
    with Server(smollm2.dense_path(), "--cache_lens", "4096") as server:
        yield server
        assert "Traceback" not in server.log, server.log


def test_every_page_is_listed_and_tried():
    pages = {path.stem for path in (ROOT / "docs" / "interop").glob("*.md")} - {"README"}
    assert pages == {*HERE, *ELSEWHERE}
    overview = (ROOT / "docs" / "interop" / "README.md").read_text()
    assert all(f"({page}.md)" in overview for page in pages)


@pytest.mark.parametrize("page", HERE)
def test_the_blocks_of_a_page(server, page):
    found = blocks(page)
    assert found
    for language in ("python", "sh"):
        sources = [source for kind, source in found if kind == language]
        if language == "sh" and sources and not shutil.which("curl"):
            pytest.skip("curl is not installed")
        if sources:
            said = run_blocks(language, sources, server.url)
    for words in SAYS[page]:
        assert words in said, (words, said)
