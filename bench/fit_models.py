"""Models the planner's constants are fitted on: other widths than those it is tested with.

The tests' are bench.cpu's (cpu_models.WIDTHS); the blocks and the mix of types are made the same
way.
"""

from bench.cpu_models import common
from tests.support.families import Family


def llama_8b(layers: int = 8) -> Family:
    """Llama-3.1-8B: dense, grouped queries."""
    config = common(4096, 14336, 128256, 32, 8) | {"num_hidden_layers": layers}
    return Family("llama-8b", "llama", "Llama", config)


def moonlight(layers: int = 7) -> Family:
    """Moonlight-16B-A3B: latent attention without a low rank for queries, sigmoid routing."""
    config = common(2048, 11264, 32768, 16, 16) | {
        "num_hidden_layers": layers, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "moe_intermediate_size": 1536, "first_k_dense_replace": 1, "n_shared_experts": 2,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "routed_scaling_factor": 2.446,
    }  # fmt: skip
    return Family("moonlight", "deepseek2", "DeepseekV3", config, split_kv_b=True)


def kimi(layers: int = 2) -> Family:
    """Kimi-K2's attention and layers, a quarter of its experts."""
    config = common(7168, 18432, 8192, 64, 64) | {
        "num_hidden_layers": layers, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "moe_intermediate_size": 2048, "first_k_dense_replace": 1, "n_shared_experts": 1,
        "n_routed_experts": 96, "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "routed_scaling_factor": 2.827,
    }  # fmt: skip
    return Family("kimi", "deepseek2", "DeepseekV3", config, split_kv_b=True)


def qwen3_235b(layers: int = 2) -> Family:
    """Qwen3-235B-A22B."""
    config = common(4096, 12288, 32768, 64, 4) | {
        "num_hidden_layers": layers, "head_dim": 128, "attention_bias": False,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
    }  # fmt: skip
    return Family("qwen3-235b", "qwen3moe", "Qwen3Moe", config)


FIT_MODELS = {"llama-8b": llama_8b, "moonlight": moonlight, "kimi": kimi, "qwen3-235b": qwen3_235b}
