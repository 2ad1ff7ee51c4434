"""Every name and value that upstream's rule files use, one rule each, on a described machine.

Each rule is planned for the miniature it is meant for on a machine with two GPUs, after rules that
leave everything on the CPU: the plan must differ, visibly, from the one without it. What may be
ignored is listed, and gives one line each.
"""

import json
from dataclasses import replace
from functools import cache

import pytest

from ktransformers.errors import UserError
from ktransformers.models.registry import family_for
from ktransformers.optimize import report
from ktransformers.optimize.plan import PlanContext, plan
from ktransformers.optimize.rules import parse_rules
from ktransformers.optimize.tree import describe
from ktransformers.runtime.loading import build_on_meta
from tests.support.families import families
from tests.support.upstream_rules import CORPUS, rule

MODEL_TYPES = {
    "deepseek_v2": "deepseek_v2", "deepseek_v2_lite": "deepseek_v2", "deepseek_v3": "deepseek_v3",
    "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "mixtral": "mixtral", "llama": "llama",
    "glm4moe": "glm4_moe",
}  # fmt: skip
TWO_GPUS = PlanContext(cuda_devices=2)
ON_GPU = {"generate_device": "cuda:1", "prefill_device": "cuda:1"}
# All that no rule takes would go to the first GPU; these keep it on the CPU, after the one at hand.
REST = rule("default", ".*", kwargs={"generate_device": "cpu", "prefill_device": "cpu"})

# (family, class that is matched or None, name that is matched or None, replacement)
M, L = "^model$", r"^model\.layers\..*"
NAMES = [
    ("deepseek_v3", "torch.nn.Linear", r"^lm_head$", "linear.KTransformersLinear"),
    ("deepseek_v3", "modeling_deepseek_v3.MoEGate", None, "gate.KMoEGate"),
    ("deepseek_v3", "modeling_deepseek_v3.MoEGate", None, "gate.KMoEGateDeepSeekV3"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3RotaryEmbedding", None,
     "RoPE.YarnRotaryEmbeddingV3"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3RotaryEmbedding", None,
     "RoPE.RotaryEmbeddingV3"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3RotaryEmbedding", None,
     "RoPE.RotaryEmbeddingV4"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3RotaryEmbedding", None,
     "RoPE.KMoEGateDeepSeekV3"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3MoE", L + r"\.mlp$", "experts.KDeepseekV3MoE"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3MoE", None, "experts.KDeepseekV3MoEV2"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3RMSNorm", None, "layernorm.RMSNorm"),
    ("deepseek_v3", "modeling_deepseek_v3.DeepseekV3MLP", None, "mlp.kDeepseekV3MLP"),
    ("deepseek_v3", None, L + r"\.self_attn$", "attention.KDeepseekV2Attention"),
    ("deepseek_v3", None, L + r"\.self_attn$", "balance_serve_attention.flashinfer_attn"),
    ("deepseek_v3", None, L + r"\.self_attn$", "attention.flashinfer_attn"),
    ("deepseek_v3", None, L + r"\.self_attn$", "attention.DeepseekV2AttentionInjected"),
    ("deepseek_v3", None, L + r"\.mlp\.experts$", "experts.KTransformersExperts"),
    ("deepseek_v3", None, L + r"\.mlp\.experts$", "experts.KTransformersExpertsV2"),
    ("deepseek_v3", None, L + r"\.mlp\.experts$", "experts.KTransformersMLPExpert"),
    ("deepseek_v3", None, M, "models.KDeepseekV2Model"),
    ("deepseek_v3", None, M, "layer_wise_prefill.DeepseekV2ModelPerLayerPrefill"),
    ("deepseek_v3", None, "^model.embed_tokens", "default"),
    ("deepseek_v2", "modeling_deepseek.DeepseekV2YarnRotaryEmbedding", None,
     "RoPE.YarnRotaryEmbedding"),
    ("deepseek_v2", "modeling_deepseek.DeepseekV2MoE", None, "experts.KDeepseekV2MoE"),
    ("deepseek_v2", "modeling_deepseek.DeepseekV2MoE", None, "experts.DeepseekV2MoEInjected"),
    ("qwen2moe", "modeling_qwen2_moe.Qwen2MoeRotaryEmbedding", None, "RoPE.RotaryEmbedding"),
    ("qwen2moe", "modeling_qwen2_moe.Qwen2MoeSparseMoeBlock", None,
     "experts.KQwen2MoeSparseMoeBlock"),
    ("qwen2moe", "modeling_qwen2_moe.Qwen2MoeSparseMoeBlock", None,
     "experts.KQwen2MoeSparseMoeBlockV2"),
    ("qwen2moe", "modeling_qwen2_moe.Qwen2MoeSparseMoeBlock", None,
     "experts.Qwen2MoeSparseMoeBlockInjected"),
    ("qwen2moe", "modeling_qwen2_moe.Qwen2MoeRMSNorm", None, "layernorm.KQwen2MoeRMSNorm"),
    ("qwen2moe", "modeling_qwen2_moe.Qwen2MoeMLP", None, "mlp.KQwen2MoeMLP"),
    ("qwen2moe", None, L + r"\.self_attn$", "balance_serve_attention.KQwen2MoeAttention"),
    ("qwen2moe", None, M, "models.KQwen2MoeModel"),
    ("qwen2moe", None, M, "layer_wise_prefill.Qwen2MoeModelPerLayerPrefill"),
    ("qwen3moe", "modeling_qwen2_moe.Qwen2MoeRotaryEmbedding", None, "RoPE.RotaryEmbedding"),
    ("qwen3moe", "modeling_qwen3_moe.Qwen3MoeSparseMoeBlock", None,
     "experts.KQwen3MoeSparseMoeBlockV2"),
    ("qwen3moe", "modeling_qwen3_moe.Qwen3MoeRMSNorm", None, "layernorm.KQwen3MoeRMSNorm"),
    ("qwen3moe", None, L + r"\.self_attn$", "balance_serve_attention.KQwen3MoeAttention"),
    ("mixtral", "modeling_mixtral.MixtralRotaryEmbedding", None, "RoPE.RotaryEmbedding"),
    ("mixtral", "modeling_mixtral.MixtralSparseMoeBlock", L + r"\.block_sparse_moe$",
     "experts.KMistralSparseMoEBlock"),
    ("mixtral", None, L + r"\.block_sparse_moe$", "experts.KMisrtalSparseMoEBlock"),
    ("llama", "modeling_llama.LlamaRotaryEmbedding", None, "RoPE.RotaryEmbeddingV2"),
    ("llama", "modeling_llama.LlamaModel", None, "models.KLlamaModel"),
    ("llama", None, L + r"\.self_attn$", "attention.KLlamaAttention"),
    ("glm4moe", "modeling_glm4_moe.Glm4MoeRotaryEmbedding", None,
     "RoPE.KGlm4MoeRotaryEmbedding"),
    ("glm4moe", "modeling_glm4_moe.Glm4MoeMoE", None, "experts.KGlm4MoeMoE"),
    ("glm4moe", "modeling_glm4_moe.Glm4MoeRMSNorm", None, "layernorm.KGlm4MoeRMSNorm"),
    ("glm4moe", "modeling_glm4_moe.Glm4MoeMLP", None, "mlp.KGlm4MoeMLP"),
    ("glm4moe", None, L + r"\.mlp\.experts$", "experts.KGlm4Experts"),
    ("glm4moe", None, L + r"\.self_attn$", "balance_serve_attention.KGlm4MoeAttention"),
]  # fmt: skip

# (replacement, name that is matched, kwargs besides the devices)
LINEAR = ("linear.KTransformersLinear", r"^lm_head$")
EXPERTS = ("experts.KTransformersExperts", L + r"\.mlp\.experts$")
ATTENTION = ("attention.KDeepseekV2Attention", L + r"\.self_attn$")
MODEL = ("models.KDeepseekV2Model", M)
VALUES = [
    *((LINEAR, {"generate_device": device}) for device in ("cuda", "cuda:0", "cuda:1")),
    *((LINEAR, {"prefill_device": device}) for device in ("cuda", "cuda:0", "cuda:1")),
    *((LINEAR, {"generate_op": op, "generate_device": "cuda:0"}) for op in (
        "KLinearMarlin", "VLinearMarlin", "KLinearFP8", "KLinearCPUInfer", "KLinearTorch",
        "KLinearQ8", "QuantizedLinearMarlin", "QuantizedLinearTorch")),
    (LINEAR, {"prefill_op": "KLinearTorch", "prefill_device": "cuda:0"}),
    (LINEAR, {"out_device": "cuda:1"}),
    *((LINEAR, {"generate_op": "KLinearMarlin", "generate_device": "cuda:0", **extra})
      for extra in ({"num_bits": 8}, {"group_size": 128})),
    (LINEAR, {"generate_op": "KLinearFP8", "generate_device": "cuda:0", "block_size": 64}),
    *((EXPERTS, {"generate_op": op, "generate_device": "cuda:0"}) for op in (
        "KExpertsCPU", "KExpertsMarlin", "KExpertsTorch")),
    *((EXPERTS, {"prefill_op": op, "prefill_device": "cuda:1"}) for op in (
        "KExpertsTorch", "KExpertsMarlin")),
    *((EXPERTS, {"out_device": device}) for device in ("cuda", "cuda:0", "cuda:1")),
    *((EXPERTS, {"backend": backend}) for backend in ("llamafile", "AMXBF16", "AMXInt8")),
    *((ATTENTION, {"absorb_for_prefill": value}) for value in (False, True)),
    (ATTENTION, {"chunck_size": 512}),
    *((MODEL, {"transfer_map": value}) for value in (
        {1: "cuda:1"}, {1: "cuda:0", 2: "cuda:1"}, {2: "cpu"})),
    *((MODEL, {"per_layer_prefill_intput_threshold": value}) for value in (0, 30000)),
]  # fmt: skip


@cache
def tree_of(name: str):
    family = family_for(MODEL_TYPES[name])
    model = build_on_meta(family, dict(families()[name].config))
    return describe(model, family)


def planned(name: str, text: str, context: PlanContext = TWO_GPUS):
    made = plan(tree_of(name), parse_rules(text, "f"), context)
    rows = report.to_json(made)["rows"]
    for row in rows:
        del row["rule"]
    return rows, made.notes


@pytest.mark.parametrize("family, cls, name, replacement", NAMES)
def test_every_name_changes_the_plan(family, cls, name, replacement):
    text = rule(replacement, name, cls, ON_GPU)
    without, _ = planned(family, REST)
    rows, notes = planned(family, text + REST)
    assert rows != without and notes == ()
    changed = [row for row, other in zip(rows, without, strict=True) if row != other]
    assert all(row["device"] == "cuda:1" or row["kind"] == "model" for row in changed)


@pytest.mark.parametrize("place, kwargs", VALUES)
def test_every_value_changes_the_plan(place, kwargs):
    replacement, name = place
    # What the same rule gives without the value: generate_device stays where KLinearFP8 needs it.
    base = {key: value for key, value in kwargs.items() if key == "generate_device"}
    if len(kwargs) == 1 or "generate_device" not in kwargs or len(base) == len(kwargs):
        base = {}
    elif len(kwargs) == 3:
        base = {key: value for key, value in kwargs.items() if key.startswith("generate")}
    without, _ = planned("deepseek_v3", rule(replacement, name, None, base) + REST)
    rows, notes = planned("deepseek_v3", rule(replacement, name, None, kwargs) + REST)
    assert rows != without and notes == ()
    # And it is seen in the table, not in JSON alone.
    table = [line.cells() for line in lines("deepseek_v3", rule(replacement, name, None, kwargs))]
    assert table != [
        line.cells() for line in lines("deepseek_v3", rule(replacement, name, None, base))
    ]


def lines(name: str, text: str):
    return report.lines(plan(tree_of(name), parse_rules(text + REST, "f"), TWO_GPUS))


@pytest.mark.parametrize(
    "kwarg", ["act_order: false", "is_k_full: true", "stride: 16", "group_max_len: 1024"]
)
def test_what_only_tunes_upstreams_kernels_is_told_as_ignored(kwarg):
    key, value = kwarg.split(": ")
    text = rule(*LINEAR, None, {key: value, "generate_device": "cuda:0"})
    _, notes = planned("deepseek_v3", text + REST)
    assert len(notes) == 1 and f"ignored kwarg {key}" in notes[0] and notes[0].startswith("f:")


@pytest.mark.parametrize(
    "name",
    ["balance_serve_attention.KQwen3NextAttention",
     "balance_serve_attention.KQwen3NextGatedDeltaNet",
     "layernorm.KQwen3NextRMSNorm", "experts.KQwen3NextSparseMoeBlockV2",
     "experts.KSmallthinkerExperts", "experts.KSmallthinkerMoeBlock",
     "mlp.KSmallthinkerDenseMlpBlock"],
)  # fmt: skip
def test_parts_of_models_this_does_not_run_are_named(name):
    with pytest.raises(UserError, match=f"{name} belongs to an architecture this build does not"):
        parse_rules(rule(name, ".*"), "f")


# --- files that fail upstream, for reasons of its own


def test_a_device_beside_the_class_means_what_its_author_meant():
    text = REST.replace("  replace:", "  replace:\n    device: cuda:1", 1)
    text = "- match: {name: lm_head}\n  replace: {class: default, device: 'cuda:1'}\n" + text
    rows, notes = planned("deepseek_v3", text.replace("    device: cuda:1\n", ""))
    assert next(row for row in rows if row["module"] == "lm_head")["device"] == "cuda:1"
    assert len(notes) == 1 and "replace.device, which upstream never reads" in notes[0]


@pytest.mark.parametrize("kwargs", ["null", "~"])
def test_null_kwargs_are_none(kwargs):
    text = f"- match: {{name: self_attn$}}\n  replace: {{class: default, kwargs: {kwargs}}}\n"
    _, notes = planned("deepseek_v3", text + REST)
    assert len(notes) == 1 and "kwargs is null" in notes[0]


def test_attention_without_kwargs_works():
    text = rule("attention.KDeepseekV2Attention", L + r"\.self_attn$")
    rows, notes = planned("deepseek_v3", text + REST)
    assert notes == ()
    assert any(row["operator"] == "attention.mla" for row in rows)


def test_the_text_none_is_null():
    text = rule(*EXPERTS, None, {"prefill_op": '"None"', "generate_op": "KExpertsCPU"})
    _, notes = planned("deepseek_v3", text + REST)
    assert len(notes) == 1 and "is the text 'None'" in notes[0]


def test_gpu_is_cuda():
    rows, _ = planned("deepseek_v3", rule(*LINEAR, None, {"generate_device": "gpu"}) + REST)
    assert next(row for row in rows if row["module"] == "lm_head")["device"] == "cuda:0"


# --- devices


def test_a_gpu_that_is_not_there_is_one_line_and_can_be_mapped():
    text = rule(*LINEAR, None, {"generate_device": "cuda:5"}) + REST
    with pytest.raises(UserError) as error:
        planned("deepseek_v3", text)
    line = str(error.value)
    assert "\n" not in line and line.startswith("f:1:")
    assert "this machine has 2 CUDA devices" in line and "--device-map cuda:5=cuda:0" in line
    for target in ("cuda:1", "cpu"):
        mapped = PlanContext(cuda_devices=2, device_map={"cuda:5": target})
        rows, _ = planned("deepseek_v3", text, mapped)
        assert next(row for row in rows if row["module"] == "lm_head")["device"] == target


def test_a_gpu_keeps_the_type_of_the_file_whatever_upstreams_op_would_make_of_it():
    """The plan's bytes are those that are kept; upstream's own type stands beside them."""
    head = {}
    for op in (None, "KLinearMarlin", "KLinearFP8", "KLinearQ8"):
        kwargs = {"generate_device": "cuda:0"} | ({"generate_op": op} if op else {})
        rows, _ = planned("deepseek_v3", rule(*LINEAR, None, kwargs) + REST)
        head[op] = next(row for row in rows if row["module"] == "lm_head")
    assert {row["device"] for row in head.values()} == {"cuda:0"}
    assert len({row["bytes"] for row in head.values()}) == 1
    upstream = {op: row["how"]["upstream"] for op, row in head.items() if op}
    assert upstream == {"KLinearMarlin": "int4g64", "KLinearFP8": "fp8b128", "KLinearQ8": "q8_0"}


@pytest.mark.parametrize(
    ("group", "bits", "weights", "quant"),
    [
        (None, None, "int4g32", "int4"),
        (64, 4, "int4g64", "int4g64"),
        (256, None, None, "auto"),
        (64, 8, None, "auto"),
        (64, 40, None, "auto"),
    ],
)
def test_upstreams_int4_keeps_codes_and_rounds_where_a_group_is_named(group, bits, weights, quant):
    tree = [
        replace(one, weights={name: replace(w, type="q4_k") for name, w in one.weights.items()})
        for one in tree_of("deepseek_v3")
    ]
    kwargs = {"generate_op": "KLinearMarlin", "generate_device": "cuda:0"}
    kwargs |= {"group_size": group} if group else {}
    kwargs |= {"num_bits": bits} if bits else {}
    made = plan(tree, parse_rules(rule(*LINEAR, None, kwargs) + REST, "f"), TWO_GPUS)
    head = made.row("lm_head")
    assert head.how.get("weights") == weights and head.options.quant == quant
    assert head.smaller == 0 or weights


@pytest.mark.parametrize("name", CORPUS)
def test_whole_files_are_planned_on_two_gpus(name):
    miniature, text = CORPUS[name]
    if miniature not in MODEL_TYPES:
        pytest.fail(f"{miniature} has no model type here")
    rows, notes = planned(miniature, text)
    assert notes == ()
    devices = {row["device"] for row in rows}
    assert "cuda:0" in devices and "cpu" in devices
    assert ("cuda:1" in devices) == ("two_gpus" in name)
    json.dumps(rows)
