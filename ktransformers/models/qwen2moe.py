"""Qwen2-MoE: routed experts and one gated shared expert."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family
from ktransformers.models.common import base_config, expert_counts, expert_width


def config_from_gguf(gguf) -> dict:
    """Qwen2MoeConfig's fields. The family never normalises the chosen experts' weights."""
    experts, used = expert_counts(gguf)
    return base_config(gguf) | {
        "num_experts": experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": expert_width(gguf, 0),
        "shared_expert_intermediate_size": expert_width(gguf, 0, "shexp"),
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


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
    config_from_gguf=config_from_gguf,
)
