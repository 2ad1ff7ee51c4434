"""The families: one hand-written transformers configuration per miniature, in two widths.

These dictionaries are the truth that both sides are compared against. The GGUF metadata is derived
from them as llama.cpp's converters derive it (miniatures.py); the reference model is built from
them directly (reference.py) and never sees the metadata.
"""

from dataclasses import dataclass

from tests.support import vocabulary


@dataclass(frozen=True)
class Family:
    """architecture: the GGUF name. model: the transformers class without "ForCausalLM".
    config: fields of its configuration. split_kv_b: store kv_b as k_b (transposed) and v_b."""

    name: str
    architecture: str
    model: str
    config: dict
    split_kv_b: bool = False


def plain_rope(theta: float = 10000.0) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


def yarn_rope(mscale: float | None = None) -> dict:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    return rope if mscale is None else rope | {"mscale": mscale, "mscale_all_dim": mscale}


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def common(wide: bool) -> dict:
    """Fields every family has. The odd vocabulary size leaves a ragged last group of rows."""
    return {
        "vocab_size": vocabulary.SIZE,
        "hidden_size": 256 if wide else 128,
        "intermediate_size": 512 if wide else 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_parameters": plain_rope(),
        "bos_token_id": 0,
        "eos_token_id": vocabulary.EOS,
        "pad_token_id": None,
    }


def deepseek(wide: bool) -> dict:
    """MLA: its inner norms have the fixed epsilon 1e-6 in transformers, so all norms have."""
    return common(wide) | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "q_lora_rank": 256 if wide else 96,
        "kv_lora_rank": 256 if wide else 64,
        "qk_nope_head_dim": 64 if wide else 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64 if wide else 48,
        "moe_intermediate_size": 256 if wide else 64,
        "first_k_dense_replace": 1,
        "n_shared_experts": 2,
    }


def families(wide: bool = False) -> dict[str, Family]:
    """Every miniature by name. wide: all rows are multiples of 256, so that every type fits."""
    base = common(wide)
    expert = 256 if wide else 64
    qwen2 = base | {"rms_norm_eps": 1e-6, "use_sliding_window": False}
    qwen3 = qwen2 | {"head_dim": 64 if wide else 48, "attention_bias": False}
    moe = {"num_experts_per_tok": 3, "num_experts": 8, "moe_intermediate_size": expert}
    lite = deepseek(wide) | {
        "q_lora_rank": None,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "rope_parameters": yarn_rope(0.707),
    }
    v2 = deepseek(wide) | {
        "n_routed_experts": 16,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 4.0,
        "rope_parameters": yarn_rope(0.707),
    }
    v3 = deepseek(wide) | {
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rope_parameters": yarn_rope(1.0),
    }
    # Moonlight queries without compression and does not scale positions; Kimi-K2 has one group.
    moonlight = v3 | {
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 2,
        "routed_scaling_factor": 2.446,
        "rope_parameters": plain_rope(50000.0),
    }
    kimi = v3 | {
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.827,
        "n_routed_experts": 12,
    }
    glm = base | {
        "num_hidden_layers": 3,
        "head_dim": 64,
        "attention_bias": True,
        "use_qk_norm": True,
        "rope_parameters": plain_rope() | {"partial_rotary_factor": 0.5},
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": expert,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 1,
        "topk_group": 1,
    }
    rows = (
        Family("llama", "llama", "Llama", base),
        Family(
            "llama_tied", "llama", "Llama",
            base | {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE, "head_dim": 64},
        ),
        Family(
            "llama_linear", "llama", "Llama",
            base | {"rope_parameters": plain_rope() | {"rope_type": "linear", "factor": 4.0}},
        ),
        Family(
            "mixtral", "llama", "Mixtral",
            base
            | {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": expert},
        ),
        Family("qwen2", "qwen2", "Qwen2", qwen2 | {"tie_word_embeddings": True}),
        Family("qwen2_yarn", "qwen2", "Qwen2", qwen2 | {"rope_parameters": yarn_rope()}),
        Family(
            "qwen2moe", "qwen2moe", "Qwen2Moe",
            qwen2
            | moe
            | {"shared_expert_intermediate_size": 2 * expert, "norm_topk_prob": False},
        ),
        Family("qwen3", "qwen3", "Qwen3", qwen3 | {"tie_word_embeddings": True}),
        Family("qwen3moe", "qwen3moe", "Qwen3Moe", qwen3 | moe | {"norm_topk_prob": True}),
        Family("glm4moe", "glm4moe", "Glm4Moe", glm),
        Family("moonlight", "deepseek2", "DeepseekV3", moonlight),
        Family("kimi_k2", "deepseek2", "DeepseekV3", kimi),
        Family("deepseek_v2_lite", "deepseek2", "DeepseekV2", lite),
        Family("deepseek_v2_lite_split", "deepseek2", "DeepseekV2", lite, split_kv_b=True),
        Family("deepseek_v2", "deepseek2", "DeepseekV2", v2, split_kv_b=True),
        Family("deepseek_v3", "deepseek2", "DeepseekV3", v3, split_kv_b=True),
        Family("deepseek_v3_whole", "deepseek2", "DeepseekV3", v3),
    )  # fmt: skip
    return {family.name: family for family in rows}
