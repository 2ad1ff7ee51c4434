"""Whole files in upstream's dialect: planned at full depth for their GPUs, run without any.

The tokens a file's rules give with every device mapped to the CPU must be those of the model
without a rule file; where each layer goes on the machine it was written for is told by the file's
author (tests/support/upstream_files.py), not by the code under test.
"""

from functools import cache

import pytest

from ktransformers import AutoModelForCausalLM
from ktransformers.errors import UserError
from ktransformers.models.known import KNOWN
from ktransformers.models.registry import family_for
from ktransformers.optimize.devices import parse_device_map
from ktransformers.optimize.plan import PlanContext, plan
from ktransformers.optimize.rules import parse_rules
from ktransformers.optimize.tree import describe
from ktransformers.runtime.loading import build_on_meta
from tests.support.miniatures import miniature, write
from tests.support.ours import greedy
from tests.support.upstream_files import FILES

PROMPT = [5, 77, 141, 3, 250, 12, 88]


@cache
def deep_tree(name: str):
    config = dict(KNOWN[name])
    config.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 1e4})
    family = family_for(config["model_type"])
    return describe(build_on_meta(family, config), family)


@pytest.mark.parametrize("name", FILES)
def test_planned_at_full_depth_for_its_gpus(name):
    file = FILES[name]
    tree = deep_tree(file.model)
    rules = parse_rules(file.text, name)
    made = plan(tree, rules, PlanContext(cuda_devices=file.gpus))
    told = [note for note in made.notes if "is the text 'None'" not in note]
    assert told == [], told
    attention = [row for row in made.rows if row.kind.startswith("attention")]
    assert [row.device for row in attention] == list(file.devices)
    on_gpu = {row.device for row in made.rows if row.device != "cpu"}
    assert on_gpu == {f"cuda:{i}" for i in range(file.gpus)}
    experts = {row.module: row for row in made.rows if row.kind == "moe.experts"}
    is_marlin = "KExpertsMarlin" in file.text
    for row in experts.values():
        layer = int(row.module.split(".")[2])
        on_card = is_marlin and file.devices[layer] == "cuda:0"
        assert row.device == ("cuda:0" if on_card else "cpu"), row
    # The same for a machine with fewer GPUs: a line that says what to do, then as mapped.
    if file.gpus > 1:
        with pytest.raises(UserError, match="--device-map cuda:"):
            plan(tree, rules, PlanContext(cuda_devices=1))
        mapped = {f"cuda:{i}": "cuda:0" for i in range(1, file.gpus)}
        one = plan(tree, rules, PlanContext(cuda_devices=1, device_map=mapped))
        assert {row.device for row in one.rows} == {"cpu", "cuda:0"}
        assert sum(one.device_bytes().values()) == pytest.approx(
            sum(made.device_bytes().values()), rel=0.01
        )


@cache
def without_rules(name: str, folder) -> tuple:
    path = write(miniature(name, types="Q8_0"), folder / f"{name}.gguf")
    model = AutoModelForCausalLM.from_pretrained(str(path), cpu_infer=1)
    return path, greedy(model, PROMPT, 12, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    yield tmp_path_factory.mktemp("files")
    without_rules.cache_clear()


@pytest.mark.parametrize("name", FILES)
def test_run_without_a_gpu_it_says_the_same(name, folder, tmp_path):
    file = FILES[name]
    path, wanted = without_rules(file.miniature, folder)
    rules = tmp_path / "rules.yaml"
    rules.write_text(file.text)
    words = [f"cuda:{i}=cpu" for i in range(file.gpus)] + ["cuda=cpu"]
    model = AutoModelForCausalLM.from_pretrained(
        str(path), cpu_infer=1, optimize_config_path=str(rules),
        device_map=parse_device_map(words),
    )  # fmt: skip
    assert model.kt.plan.dialect == "upstream" and model.kt.decoder is not None
    assert set(model.kt.plan.device_bytes()) == {"cpu"}
    assert greedy(model, PROMPT, 12, None) == wanted
