"""What the deepseek2 architecture's families share: latent attention and grouped experts."""

from ktransformers.models.common import base_config, expert_counts, expert_width, head_dim

SOFTMAX, SIGMOID = 1, 2  # deepseek2.expert_gating_func


def uses_sigmoid(gguf) -> bool:
    """Whether a deepseek2 file is of the V3 kind: sigmoid scores, with a bias for the choice."""
    gating = gguf.integer("deepseek2.expert_gating_func", 0, 3, default=0)
    if gating in (SOFTMAX, SIGMOID):
        return gating == SIGMOID
    return any(name.endswith("exp_probs_b.bias") for name in gguf.tensors)


def latent_config(gguf) -> dict:
    """Fields of DeepseekV2Config and DeepseekV3Config. Raises: UserError."""
    arch = gguf.architecture
    config = base_config(gguf)
    rope = gguf.integer(f"{arch}.rope.dimension_count", 2, 1 << 16)
    # Files with kv_b split give the absorbed form's sizes in key_length and the true ones beside.
    key = gguf.integer(
        f"{arch}.attention.key_length_mla", rope + 1, 1 << 16, default=head_dim(gguf, config)
    )
    value = gguf.integer(
        f"{arch}.attention.value_length_mla",
        1,
        1 << 16,
        default=gguf.integer(f"{arch}.attention.value_length", 1, 1 << 16, default=key),
    )
    layers = config["num_hidden_layers"]
    dense = gguf.integer(f"{arch}.leading_dense_block_count", 0, layers, default=0)
    config |= {
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": gguf.integer(f"{arch}.attention.q_lora_rank", 0, 1 << 16, default=0) or None,
        "kv_lora_rank": gguf.integer(f"{arch}.attention.kv_lora_rank", 1, 1 << 16),
        "qk_nope_head_dim": key - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "first_k_dense_replace": dense,
        "n_group": gguf.integer(f"{arch}.expert_group_count", 1, 1 << 12, default=1),
        "topk_group": gguf.integer(f"{arch}.expert_group_used_count", 1, 1 << 12, default=1),
        "n_shared_experts": gguf.integer(f"{arch}.expert_shared_count", 0, 1 << 10, default=1),
        "routed_scaling_factor": gguf.number(f"{arch}.expert_weights_scale", 0, 1e6, default=1.0),
        "norm_topk_prob": bool(gguf.metadata.get(f"{arch}.expert_weights_norm", False)),
        "attention_bias": False,
    }
    if dense < layers:
        experts, used = expert_counts(gguf)
        config |= {
            "n_routed_experts": experts,
            "num_experts_per_tok": used,
            "moe_intermediate_size": expert_width(gguf, dense),
        }
    # The converters store 0.1 * mscale_all_dim; the family's two mscales are equal.
    multiplier = gguf.number(f"{arch}.rope.scaling.yarn_log_multiplier", 0.0, 1e3, default=0.0)
    if config["rope_parameters"]["rope_type"] == "yarn" and multiplier:
        mscale = multiplier / 0.1
        config["rope_parameters"] |= {"mscale": mscale, "mscale_all_dim": mscale}
    return config
