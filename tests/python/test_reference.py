"""The reference side checked against a third party, so that it can be trusted as a judge."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
import transformers

from tests.support.blocks import ALL_TYPES
from tests.support.compare import (
    Comparison,
    GreedyMatch,
    compare,
    entropy,
    greedy_match,
    kl,
    margins,
)
from tests.support.families import families
from tests.support.miniatures import Tensor, miniature, write
from tests.support.reference import Reference, read_weights

torch.set_num_threads(1)  # miniatures are too small to share

IDS = [int(i) for i in np.random.default_rng(1).integers(0, 300, 96)]

# transformers' own GGUF loader knows these five, but leaves some widths at the class's defaults.
DEFAULTS = {
    "llama": {},
    "qwen2": {},
    "qwen2moe": {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    "qwen3": {"head_dim": 128},
    "qwen3moe": {"moe_intermediate_size": 768},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_agrees_with_the_gguf_loader_of_transformers(name, tmp_path):
    family = families()[name]
    family = replace(family, config=family.config | DEFAULTS[name])
    path = write(miniature(family, "Q8_0"), tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([IDS])).logits[0].numpy()
    result = compare(Reference.load(path, family).logits(IDS), logits)
    assert result.nmse < 1e-11 and result.kl_mean < 1e-10


def test_kv_b_whole_and_split_are_the_same_model(tmp_path):
    table = families()
    split = miniature("deepseek_v3")
    whole = miniature("deepseek_v3_whole")
    for layer in range(3):
        k = split.tensors[f"blk.{layer}.attn_k_b.weight"].values.transpose(0, 2, 1)
        v = split.tensors[f"blk.{layer}.attn_v_b.weight"].values
        kv = np.ascontiguousarray(np.concatenate([k, v], axis=1)).reshape(-1, k.shape[2])
        name = f"blk.{layer}.attn_kv_b.weight"
        whole.tensors[name] = Tensor(gguf.GGMLQuantizationType.F32, kv.view(np.uint8))
    logits = [
        Reference.load(write(one, tmp_path / f"{one.family.name}.gguf"), table[one.family.name])
        for one in (split, whole)
    ]
    assert np.array_equal(logits[0].logits(IDS), logits[1].logits(IDS))


@pytest.mark.parametrize("name", families())
def test_a_miniature_speaks_with_a_real_models_entropy(name, tmp_path):
    path = write(miniature(name, "Q8_0"), tmp_path / "model.gguf")
    model = Reference.load(path, families()[name])
    logits = model.logits(IDS)
    assert 2.0 <= entropy(logits).mean() <= 4.0
    tokens, gaps = model.greedy(IDS, 8)
    again = model.logits(IDS + tokens)[len(IDS) - 1 : -1]
    assert tokens == again.argmax(axis=-1).tolist()
    assert np.allclose(gaps, margins(again), atol=1e-4)


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda kind: kind.name)
def test_every_weight_type_can_be_written_and_keeps_its_scale(kind, tmp_path):
    path = write(miniature("qwen3moe", kind.name), tmp_path / "model.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    weights, plain = read_weights(path), miniature("qwen3moe", wide=weights_are_wide(tensors))
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight", "output.weight"):
        assert tensors[name].tensor_type == kind
        ratio = weights[name].std() / plain.tensors[name].values.std()
        coarsest = 1.6 if kind.name == "NVFP4" else 1.25  # its scales end at 2**-9
        assert np.isfinite(weights[name]).all() and 0.8 < ratio < coarsest
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def weights_are_wide(tensors) -> bool:
    return int(tensors["token_embd.weight"].shape[0]) == 256


def test_the_sliced_miniature_equals_the_dense_one(tmp_path):
    from ktransformers.util.slice_moe import slice_moe

    dense = write(miniature("llama", "Q4_1", wide=True), tmp_path / "dense.gguf")
    slice_moe(dense, tmp_path / "moe.gguf", 4)
    family = families(wide=True)["llama"]
    moe = {"intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 4}
    sliced = replace(family, model="Mixtral", config=family.config | moe)
    a = Reference.load(dense, family).logits(IDS)
    b = Reference.load(tmp_path / "moe.gguf", sliced).logits(IDS)
    assert np.abs(a - b).max() < 1e-4


def test_a_missing_or_misshapen_weight_is_refused(tmp_path):
    family = families()["llama"]
    for name, message in (
        ("blk.0.attn_v.weight", "unmatched tensors.*v_proj"),
        ("blk.0.attn_norm.weight", r"input_layernorm.weight: \(64,\)"),
    ):
        broken = miniature("llama")
        tensor = broken.tensors.pop(name)
        if "norm" in name:
            broken.tensors[name] = Tensor(tensor.kind, tensor.blocks[: 4 * 64])
        with pytest.raises(ValueError, match=message):
            Reference.load(write(broken, tmp_path / "broken.gguf"), family)


def test_measures_on_numbers_worked_out_by_hand():
    a = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    b = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])) + 3.0  # a shift changes nothing
    assert np.allclose(kl(a, b), [0.25 * np.log(2.0), 0.0], atol=1e-12)
    assert np.isclose(entropy(a)[0], 1.5 * np.log(2.0))
    assert np.isclose(compare(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])).nmse, 0.01)
    result = compare(a, b)
    assert result.top1 == 0.5 and result.near_ties == 0 and result.tokens == 2
    many = np.tile(a, (100, 1)), np.tile(b, (100, 1))  # more rows than are compared at a time
    assert np.isclose(compare(*many).kl_mean, result.kl_mean) and compare(*many).tokens == 200
    tied = np.array([[1.0, 1.0005, 0.0], [2.0, 0.0, 0.0]])
    flipped = tied[:, [1, 0, 2]] * [[1.0], [0.0]] + tied * [[0.0], [1.0]]
    assert compare(tied, flipped).top1 == 1.0 and compare(tied, flipped).near_ties == 1
    broken = np.where(np.arange(3) == 1, np.nan, a)
    assert compare(a, broken) == Comparison(0, np.inf, np.inf, np.inf, 0.0, 0)


def test_greedy_match_forgives_near_ties_only():
    tokens, gaps = [5, 6, 7], [1.0, 0.0005, 2.0]
    assert greedy_match(tokens, gaps, [5, 6, 7]) == GreedyMatch(True, 3, 1)
    assert greedy_match(tokens, gaps, [5, 9, 9]) == GreedyMatch(True, 1, 1)
    assert greedy_match(tokens, gaps, [4, 6, 7]) == GreedyMatch(False, 0, 1)
    assert greedy_match(tokens, gaps, [5, 6]) == GreedyMatch(False, 2, 1)
    assert greedy_match(tokens, gaps, [5, 6, 7, 8]) == GreedyMatch(False, 3, 1)
