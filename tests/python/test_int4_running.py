"""A folder of int4 codes by every way a model is run: chat, server, planner, kept weights.

What the codes say is checked in test_int4_folders.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ktransformers import AutoModelForCausalLM
from ktransformers.checkpoint.gguf import open_model
from ktransformers.checkpoint.weight_image import open_image
from ktransformers.cli.main import main
from tests.support.families import families
from tests.support.int4_folders import Grid, write_folder
from tests.support.miniatures import miniature, write
from tests.support.ours import logits
from tests.support.reference import Reference
from tests.support.serving import Server

ROOT = Path(__file__).parents[2]
IDS = [5, 77, 141, 3, 250, 12, 88, 199, 42, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As Kimi-K2-Thinking is stored: routed experts in codes, the rest in bf16."""
    from ktransformers.checkpoint.tokenizer import build_tokenizer

    place = tmp_path_factory.mktemp("int4")
    source = write(miniature("qwen3moe", types="BF16", wide=True), place / "source.gguf")
    reference = Reference.load(source, families(wide=True)["qwen3moe"])
    reference.model.to(torch.bfloat16).save_pretrained(place / "floats")
    build_tokenizer(open_model(source)).save_pretrained(place / "floats")
    grid = Grid("compressed-tensors", group=32, scales=torch.bfloat16)
    write_folder(place / "floats", place / "int4", grid, r"experts\.\d+\..*_proj\.weight$")
    return place / "int4"


def test_the_chat_answers_from_it(folder, tmp_path):
    words = ["chat", "--gguf_path", str(folder), "--max_new_tokens", "6", "--cpu_infer", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "ktransformers.cli.main", *words], input=b"hello\n",
        capture_output=True, timeout=120, cwd=ROOT,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(rb"\neval count: +[1-6] token", done.stdout), done.stdout
    assert b"Traceback" not in done.stderr


def test_the_server_answers_from_it(folder):
    with Server(folder, "--cpu_infer", "2") as server:
        body = {"prompt": "hello", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
        reply = server.json("/v1/completions", body)
        assert reply["usage"]["completion_tokens"] == 5
        assert server.end() == 0
    assert "Traceback" not in server.log


def test_the_planner_places_the_types_its_codes_become(folder, capsys):
    assert main(["plan", "--gguf_path", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fit"]["tokens_per_second"] > 0
    rows = {row["module"]: row for row in document["rows"]}
    experts = rows["model.layers.1.mlp.experts"]
    assert experts["bytes"] == 3 * 8 * 256 * 256 * 4.5 / 8


@pytest.mark.parametrize("in_place", [False, True])
def test_repacked_codes_are_kept_for_the_next_start(folder, tmp_path, in_place):
    expected = logits(AutoModelForCausalLM.from_pretrained(str(folder)), IDS)
    for turn in range(2):
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), weight_cache=tmp_path, in_place=in_place
        )
        store = model.kt.engine.store
        assert (store.writer is not None) == (turn == 0)
        assert (store.reader is not None) == (turn == 1)
        assert np.array_equal(logits(model, IDS), expected)
    image = open_image(tmp_path, open_model(folder).files)
    assert image.entries["blk.1.ffn_up_exps.weight"]["shape"][0] == "q4_0"
