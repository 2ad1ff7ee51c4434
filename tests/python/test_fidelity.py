"""Our logits against transformers in fp32 on the same weights: every family, both ways of running.

The second half plants mistakes in the file our side is given; each must turn the comparison red.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import ours, smollm2, vocabulary
from tests.support.blocks import ALL_TYPES
from tests.support.compare import compare, greedy_match
from tests.support.families import families
from tests.support.faults import FAULTS
from tests.support.miniatures import miniature, write
from tests.support.reference import SMOLLM2, Reference

torch.set_num_threads(1)  # miniatures are too small to share

KL_LIMIT, NMSE_LIMIT = 1e-8, 1e-9
CLEARLY_RED = 100  # a planted fault must miss the limits by far more than luck
PROMPT, TOKENS = 80, 96  # one forward over the first 80, then token by token

HEAD = Path(__file__).parents[1] / "data" / "tinyshakespeare_head.txt"
IDS = [int(i) for i in np.random.default_rng(1).integers(3, vocabulary.SIZE, TOKENS)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """name -> (path of the F32 miniature, the reference's logits, greedy tokens and margins)."""

    @lru_cache
    def make(name: str) -> tuple:
        path = write(miniature(name), tmp_path_factory.mktemp(name) / "model.gguf")
        model = Reference.load(path, families()[name])
        return path, model.logits(IDS), model.greedy(IDS[:20], 16, vocabulary.EOS)

    return make


def is_green(result) -> bool:
    return result.kl_mean <= KL_LIMIT and result.nmse <= NMSE_LIMIT and result.top1 == 1.0


@pytest.mark.parametrize("way", ours.WAYS)
@pytest.mark.parametrize("name", families())
def test_logits_and_greedy_tokens_of_every_family(name, way, reference):
    path, logits, (tokens, gaps) = reference(name)
    model = ours.load(path, "f32", ours.WAYS[way])
    result = compare(logits, ours.logits(model, IDS, PROMPT))
    assert is_green(result), result
    match = greedy_match(tokens, gaps, ours.greedy(model, IDS[:20], 16, vocabulary.EOS))
    assert match.equal, match


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda kind: kind.name)
def test_logits_with_every_weight_type(kind, tmp_path):
    path = write(miniature("qwen3moe", kind.name), tmp_path / "model.gguf")
    wide = Reference.load(path, families(wide=is_wide(path))["qwen3moe"])
    result = compare(wide.logits(IDS), ours.logits(ours.load(path, "f32", True), IDS, PROMPT))
    assert is_green(result), result


def is_wide(path) -> bool:
    import gguf

    return gguf.GGUFReader(path).get_field("qwen3moe.embedding_length").contents() == 256


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2_lite", "mixtral"])
def test_logits_with_a_mix_of_types_as_quantizers_write_it(name, tmp_path):
    mix = {"": "Q4_K", "down": "Q6_K", "attn_v": "Q5_K", "output": "Q6_K", "k_b": "Q8_0"}
    path = write(miniature(name, mix), tmp_path / "model.gguf")
    model = Reference.load(path, families(wide=True)[name])
    result = compare(model.logits(IDS), ours.logits(ours.load(path, "f32", True), IDS, PROMPT))
    assert is_green(result), result


@pytest.mark.parametrize("way", ours.WAYS)
def test_the_sliced_model_equals_the_dense_one(way, tmp_path):
    from ktransformers.util.slice_moe import slice_moe

    dense = write(miniature("llama", "Q4_1", wide=True), tmp_path / "dense.gguf")
    slice_moe(dense, tmp_path / "moe.gguf", 4)
    a = ours.logits(ours.load(dense, "f32", ours.WAYS[way]), IDS, PROMPT)
    b = ours.logits(ours.load(tmp_path / "moe.gguf", "f32", ours.WAYS[way]), IDS, PROMPT)
    assert np.abs(a - b).max() < 1e-3
    family = families(wide=True)["llama"]
    moe = {"intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 4}
    sliced = replace(family, model="Mixtral", config=family.config | moe)
    assert is_green(compare(Reference.load(tmp_path / "moe.gguf", sliced).logits(IDS), b))


@pytest.mark.slow
def test_the_real_model_dense_and_sliced_in_every_arithmetic(tmp_path):
    from ktransformers import AutoTokenizer

    dense, sliced = smollm2.dense_path(), smollm2.sliced_path(tmp_path)
    text = HEAD.read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(str(dense))
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:176]
    logits = Reference.load(dense, SMOLLM2).logits(ids)
    f32 = {path: ours.logits(ours.load(path, "f32", True), ids, 160) for path in (dense, sliced)}
    assert is_green(compare(logits, f32[dense])) and is_green(compare(logits, f32[sliced]))
    assert np.abs(f32[dense] - f32[sliced]).max() < 1e-3
    # All rows near exact; in a prompt, those after position 64 with one digit.
    for activations, least, most in (("exact", 1e-9, 2e-6), ("auto", 1e-5, 1.5e-3)):
        result = compare(logits, ours.logits(ours.load(sliced, activations, True), ids, 160))
        assert least < result.kl_mean < most, (activations, result)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_planted_fault_turns_the_comparison_red(fault, reference, tmp_path):
    _, logits, _ = reference(fault.family)
    faulty = miniature(fault.family)
    fault.plant(faulty)
    model = ours.load(write(faulty, tmp_path / "faulty.gguf"), "f32", True)
    result = compare(logits, ours.logits(model, IDS))
    assert result.kl_mean > CLEARLY_RED * KL_LIMIT, result
    assert result.nmse > CLEARLY_RED * NMSE_LIMIT, result


def bias_in_the_weights(router):
    """DeepSeek-V3's router, with the bias kept in the weights instead of in the choice alone."""

    def forward(hidden):
        logits, _, chosen = type(router).forward(router, hidden)
        weights = (logits.sigmoid() + router.e_score_correction_bias).gather(1, chosen)
        weights = weights / weights.sum(dim=-1, keepdim=True) * router.routed_scaling_factor
        return logits, weights, chosen

    return forward


def softmax_for_sigmoid(router):
    """DeepSeek-V3's router, with the weights from a softmax over the experts."""

    def forward(hidden):
        logits, _, chosen = type(router).forward(router, hidden)
        weights = logits.softmax(dim=-1).gather(1, chosen)
        weights = weights / weights.sum(dim=-1, keepdim=True) * router.routed_scaling_factor
        return logits, weights, chosen

    return forward


def weights_before_normalising_over_all(router):
    """Mixtral's router, with the softmax over all experts left as it is."""

    def forward(hidden):
        logits, _, chosen = type(router).forward(router, hidden)
        return logits, logits.softmax(dim=-1).gather(1, chosen), chosen

    return forward


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("deepseek_v3", bias_in_the_weights),
        ("deepseek_v3", softmax_for_sigmoid),
        ("mixtral", weights_before_normalising_over_all),
    ],
)
def test_a_mistake_no_file_can_hold_is_seen_when_the_reference_makes_it(name, mistake, reference):
    path, logits, _ = reference(name)
    wrong = Reference.load(path, families()[name])
    for layer in wrong.model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.forward = mistake(layer.mlp.gate)
    mine = ours.logits(ours.load(path, "f32", True), IDS)
    assert is_green(compare(logits, mine))
    result = compare(wrong.logits(IDS), mine)
    assert result.kl_mean > CLEARLY_RED * KL_LIMIT and result.nmse > CLEARLY_RED * NMSE_LIMIT


def test_enough_faults_are_planted_in_every_architecture():
    table = families()
    assert len(FAULTS) >= 15 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {table[f.family].architecture for f in FAULTS} == {
        family.architecture for family in table.values()
    }
