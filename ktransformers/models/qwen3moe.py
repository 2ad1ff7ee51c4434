"""Qwen3-MoE: routed experts, normalised queries and keys."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family
from ktransformers.models.common import (
    attention_bias,
    base_config,
    expert_counts,
    expert_width,
    head_dim,
)


def config_from_gguf(gguf) -> dict:
    """Qwen3MoeConfig's fields. The family always normalises the chosen experts' weights."""
    config = base_config(gguf)
    experts, used = expert_counts(gguf)
    return config | {
        "head_dim": head_dim(gguf, config),
        "attention_bias": attention_bias(gguf),
        "num_experts": experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": expert_width(gguf, 0),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


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
    config_from_gguf=config_from_gguf,
)
