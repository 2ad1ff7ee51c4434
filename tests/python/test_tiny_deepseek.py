"""The small trained DeepSeek-V3 keeps what it is for: it predicts, and its routing matters."""

import json

import gguf
import pytest
import torch

from tests.support import tiny_deepseek as tiny

CHARACTERS = 24_000  # of the held-out text; all of it takes five times as long


@pytest.fixture(scope="module")
def held_out() -> str:
    """All of the held-out text, from the slice of the whole text that the tests carry."""
    recorded = json.loads(tiny.FIGURES.read_text())
    text = tiny.TEXT.read_text(encoding="utf-8")
    assert len(text) > recorded["held_out_characters"]
    return text[-recorded["held_out_characters"] :]


@pytest.fixture(scope="module")
def figures(held_out) -> dict:
    return tiny.measure(tiny.load_model(), tiny.load_tokenizer(), held_out[:CHARACTERS])


def test_held_out_loss(figures):
    assert figures["nats_per_character"] <= tiny.MAX_NATS_PER_CHARACTER


def test_every_expert_is_used(figures):
    assert len(figures["router_load_entropy"]) == 2
    assert min(figures["router_load_entropy"]) >= tiny.MIN_LOAD_ENTROPY


def test_top_expert_matters(figures):
    assert figures["perplexity_rise_top_expert_dropped"] >= tiny.MIN_PERPLEXITY_RISE


def test_figures_are_those_recorded(figures):
    """The slice differs from the whole held-out text as one part of a book from another."""
    recorded = json.loads(tiny.FIGURES.read_text())[f"window_{tiny.WINDOW}"]
    for name in ("nats_per_character", "characters_per_token"):
        assert figures[name] == pytest.approx(recorded[name], rel=0.05)


def test_recorded_figures_meet_the_targets():
    recorded = json.loads(tiny.FIGURES.read_text())
    assert recorded["file_bytes"] == tiny.MODEL.stat().st_size <= tiny.MAX_FILE_BYTES
    whole = recorded[f"window_{tiny.WINDOW}"]
    assert whole["nats_per_character"] <= tiny.MAX_NATS_PER_CHARACTER
    assert min(whole["router_load_entropy"]) >= tiny.MIN_LOAD_ENTROPY
    assert whole["perplexity_rise_top_expert_dropped"] >= tiny.MIN_PERPLEXITY_RISE


def test_tokenizer_round_trip(held_out):
    tokenizer = tiny.load_tokenizer()
    text = held_out[:2000] + " Ünïcödé 123\t  \n\n end"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode(tiny.BOS + "a" + tiny.EOS).ids[::2] == [tiny.BOS_ID, tiny.EOS_ID]


def test_matrices_fit_every_k_quant():
    """Rows of 256 values, F16; the rest is what converters keep in F32."""
    kinds = {
        t.name: (t.tensor_type.name, int(t.shape[0])) for t in gguf.GGUFReader(tiny.MODEL).tensors
    }
    f32 = {name for name, (kind, _) in kinds.items() if kind == "F32"}
    assert all("norm" in n or "ffn_gate_inp" in n or n.endswith("exp_probs_b.bias") for n in f32)
    assert all(kind == "F16" and row % 256 == 0 for n, (kind, row) in kinds.items() if n not in f32)


def test_router_choice_needs_no_sign_convention():
    """Biased scores are positive, so an excluded group may be marked by zero or by -inf alike."""
    for gate in tiny.routers(tiny.load_model()):
        bias = gate.e_score_correction_bias
        assert bias.min() == 0.0 and torch.isfinite(bias).all() and bias.max() > 0.0
