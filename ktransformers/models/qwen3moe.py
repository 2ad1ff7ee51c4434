"""Qwen3-MoE: routed experts, normalised queries and keys."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family

FAMILY = Family(
    name="qwen3moe",
    gguf_architectures=("qwen3moe",),
    hf_model_types=("qwen3_moe",),
    causal_lm="transformers.models.qwen3_moe.modeling_qwen3_moe:Qwen3MoeForCausalLM",
    rule_file="qwen3moe.yaml",
    legacy_module="modeling_qwen3_moe",
    legacy_classes={
        "Qwen3MoeTopKRouter": ("torch.nn.Linear",),
        "Qwen3MoeRotaryEmbedding": (
            "ktransformers.models.modeling_qwen2_moe.Qwen2MoeRotaryEmbedding",
        ),
    },
    legacy_names=(ROTARY_PER_LAYER,),
)
