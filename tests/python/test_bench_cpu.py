"""bench.cpu's arithmetic and its models: figures that are wrong would be believed."""

import numpy as np
import pytest
from gguf import GGUFReader

from bench import cpu_models, cpu_verdict
from bench.cpu_work import phase_of, uniform_distinct, work_of
from ktransformers.checkpoint.gguf import open_model
from ktransformers.runtime.loading import model_config
from tests.support.families import Family

GIB = 2**30


def small(family: Family, **changes) -> Family:
    """The family narrowed to a file of a few MB, its name and structure kept."""
    return Family(family.name, family.architecture, family.model, family.config | changes,
                  family.split_kv_b)  # fmt: skip


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    family = small(
        cpu_models.qwen3(2), hidden_size=256, vocab_size=1024, num_experts=16,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, moe_intermediate_size=256,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_models, "POOL_BYTES", 1 << 20)
        return family, cpu_models.make(family, tmp_path_factory.mktemp("models"))


def test_the_written_file_is_what_was_planned(qwen3):
    family, path = qwen3
    reader = GGUFReader(path)
    plans = {plan.name: plan for plan in cpu_models.tensors_of(family)}
    assert {t.name for t in reader.tensors} == set(plans)
    for tensor in reader.tensors:
        plan = plans[tensor.name]
        assert tensor.tensor_type == plan.kind
        assert tuple(tensor.shape[::-1]) == plan.shape
        assert tensor.n_bytes == plan.nbytes


def test_weights_have_the_deviation_asked_for(qwen3):
    family, path = qwen3
    gguf = open_model(path)
    for plan in cpu_models.tensors_of(family):
        values = gguf.dequantize(plan.name)
        assert np.isfinite(values).all(), plan.name
        if plan.std:
            assert values.std() == pytest.approx(plan.std, rel=0.1), plan.name
        else:
            assert (values == 1.0).all(), plan.name


def test_types_are_those_of_q4_k_m():
    kinds = {plan.name: plan.kind.name for plan in cpu_models.tensors_of(cpu_models.qwen3(1))}
    assert kinds["blk.0.ffn_gate_exps.weight"] == kinds["blk.0.ffn_up_exps.weight"] == "Q4_K"
    assert kinds["blk.0.ffn_down_exps.weight"] == kinds["blk.0.attn_v.weight"] == "Q6_K"
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32" and kinds["output.weight"] == "Q6_K"
    lite = {plan.name: plan.kind.name for plan in cpu_models.tensors_of(cpu_models.mixtral(1))}
    assert lite["blk.0.attn_output.weight"] == lite["token_embd.weight"] == "Q4_K"


@pytest.mark.parametrize("width", sorted(cpu_models.WIDTHS))
def test_layers_are_sized_to_memory(width):
    spec = cpu_models.WIDTHS[width]
    largest = cpu_models.sized(width, 1024 * GIB)
    assert largest.config["num_hidden_layers"] == spec.most
    assert cpu_models.file_bytes(cpu_models.sized(width, 24 * GIB)) <= 8 * GIB
    assert cpu_models.sized(width, GIB // 2) is None


def test_known_sizes_of_the_recorded_models():
    assert cpu_models.file_bytes(cpu_models.qwen3(16)) == pytest.approx(6.9e9, rel=0.01)
    assert cpu_models.file_bytes(cpu_models.deepseek_v3(2)) == pytest.approx(7.9e9, rel=0.01)


def test_work_counts_what_a_token_reads(qwen3):
    _, path = qwen3
    gguf = open_model(path)
    work = work_of(gguf.tensors.values(), model_config(gguf)[1])
    assert (work.experts, work.used) == (16, 8)
    experts = sum(t.nbytes for t in gguf.tensors.values() if "_exps" in t.name)
    others = sum(
        t.nbytes
        for t in gguf.tensors.values()
        if "_exps" not in t.name and not t.name.startswith("token_embd")
    )
    assert work.decode_bytes(0) == experts / 2 + others
    assert work.decode_bytes(10) - work.decode_bytes(0) == 10 * 2 * 2 * 2 * (2 * 64)
    assert work.phases["experts"].ops == 2 * 2 * 8 * 3 * 256 * 256
    # 64 of 100 positions are counted twice; one row of logits in halves.
    head = 2 * 1024 * 256
    body = sum(phase.ops for name, phase in work.phases.items() if name != "head")
    assert work.phases["head"].ops == head
    assert work.linear_ops(100) == body * 164 + 2 * head
    # Attention: 4 heads of 64, keys and values, two layers, a triangle of positions.
    least = work.prompt_seconds(100, int8=1e30, bf16=1.0)
    assert least == pytest.approx(4 * 64 * 4 * 2 * (100 * 101 / 2))


def test_a_tied_embedding_is_the_head():
    assert phase_of("token_embd.weight", is_tied=True) == "head"
    assert phase_of("token_embd.weight", is_tied=False) is None
    assert phase_of("blk.1.ffn_gate_shexp.weight", False) == "shared"
    assert phase_of("blk.1.ffn_gate_inp.weight", False) == "router"
    assert phase_of("blk.1.ffn_down.weight", False) == "dense"


def test_uniform_expectation_matches_a_draw():
    rng = np.random.default_rng(1)
    draws = [len(np.unique(np.argsort(rng.random((8, 128)), axis=1)[:, :8])) for _ in range(400)]
    assert np.mean(draws) == pytest.approx(uniform_distinct(128, 8, 8), rel=0.01)


def test_disturbed_runs_are_void():
    machine = {"cpu": "AMD EPYC", "cores": 2}
    good = {"read_gbps": 60.0, "int8_tops": 0.94, "bf16_tflops": 0.47}
    model = "qwen3-30b-a3b-16layers"

    def peer(prompt, decode):
        return {"llama.cpp": [{"prompt": {"512": [512 / prompt]}, "decode": {"128": [1 / decode]}}]}

    def reasons(limits, runs, routing=(), cpu=machine):
        found = {"limits": limits, "runs": runs}
        return cpu_verdict.void_reasons(model, cpu, found, list(routing))

    assert reasons([good, good], peer(100, 27.3)) == []
    assert reasons([good | {"read_gbps": 40.0}, good], peer(100, 27.3)) == []
    assert len(reasons([good | {"read_gbps": 54.0}], peer(100, 27.3))) == 1
    assert len(reasons([good | {"int8_tops": 0.8}], peer(100, 27.3))) == 1
    assert len(reasons([good], peer(84, 23))) == 2
    assert reasons([good | {"read_gbps": 54.0}], peer(84, 23), cpu=machine | {"cores": 64}) == []
    crowded = {"tokens": 8, "distinct": 40.0, "uniform": 51.0, "share": 40 / 51}
    assert len(reasons([good], peer(100, 27.3), [crowded])) == 1


def test_verdicts_hold_rates_against_what_is_asked(qwen3):
    _, path = qwen3
    gguf = open_model(path)
    work = work_of(gguf.tensors.values(), model_config(gguf)[1])
    limits = [{"read_gbps": 60.0, "int8_tops": 1.0, "bf16_tflops": 0.5}]
    limit = 60e9 / work.decode_bytes(128)

    def verdict(share, peer):
        ours = {"prompt": {}, "decode": {"128": [1 / (share * limit)] * 3}}
        theirs = {"prompt": {}, "decode": {"128": [1 / (peer * limit)] * 3}}
        found = {"limits": limits, "runs": {"ours": [ours], "llama.cpp": [theirs]}}
        (row,) = cpu_verdict.rows_of("qwen3-30b-a3b", work, found)
        assert row["fraction"] == pytest.approx(share)
        return row["verdict"]

    assert verdict(0.9, 0.3) == "ok"
    assert verdict(0.87, 0.3) == "short"  # of the bandwidth
    assert verdict(0.9, 0.4) == "short"  # of the peer
