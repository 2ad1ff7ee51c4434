"""Qwen2-MoE: routed experts and one gated shared expert."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family

FAMILY = Family(
    name="qwen2moe",
    gguf_architectures=("qwen2moe",),
    hf_model_types=("qwen2_moe",),
    causal_lm="transformers.models.qwen2_moe.modeling_qwen2_moe:Qwen2MoeForCausalLM",
    rule_file="qwen2moe.yaml",
    legacy_module="modeling_qwen2_moe",
    legacy_classes={
        "Qwen2MoeTopKRouter": ("torch.nn.Linear",),
    },
    legacy_names=(ROTARY_PER_LAYER,),
)
