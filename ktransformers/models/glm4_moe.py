"""GLM-4.5, 4.5-Air, 4.6, 4.7: attention rotated in half of each head, DeepSeek-V3's routing."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family
from ktransformers.models.common import (
    attention_bias,
    base_config,
    expert_counts,
    expert_width,
    head_dim,
)


def config_from_gguf(gguf) -> dict:
    """Glm4MoeConfig's fields."""
    config, arch = base_config(gguf), gguf.architecture
    experts, used = expert_counts(gguf)
    layers, width = config["num_hidden_layers"], head_dim(gguf, config)
    dense = gguf.integer(f"{arch}.leading_dense_block_count", 0, layers, default=0)
    rotated = gguf.integer(f"{arch}.rope.dimension_count", 2, width, default=width // 2)
    config["rope_parameters"]["partial_rotary_factor"] = rotated / width
    return config | {
        "head_dim": width,
        "attention_bias": attention_bias(gguf),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in gguf.tensors,
        "n_routed_experts": experts,
        "num_experts_per_tok": used,
        "n_shared_experts": gguf.integer(f"{arch}.expert_shared_count", 1, 1 << 10, default=1),
        "moe_intermediate_size": expert_width(gguf, min(dense, layers - 1)),
        "first_k_dense_replace": dense,
        "n_group": gguf.integer(f"{arch}.expert_group_count", 1, 1 << 12, default=1),
        "topk_group": gguf.integer(f"{arch}.expert_group_used_count", 1, 1 << 12, default=1),
        "routed_scaling_factor": gguf.number(f"{arch}.expert_weights_scale", 0, 1e6, default=1.0),
        "norm_topk_prob": bool(gguf.metadata.get(f"{arch}.expert_weights_norm", True)),
    }


FAMILY = Family(
    name="glm4_moe",
    gguf_architectures=("glm4moe",),
    hf_model_types=("glm4_moe",),
    causal_lm="transformers.models.glm4_moe.modeling_glm4_moe:Glm4MoeForCausalLM",
    rule_file="glm4moe.yaml",
    legacy_module="modeling_glm4_moe",
    legacy_names=(ROTARY_PER_LAYER,),
    config_from_gguf=config_from_gguf,
)
