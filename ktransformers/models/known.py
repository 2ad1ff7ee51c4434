"""Published models by name, as their config.json describes them: for planning without a file.

Only what sizes depend on. Sources: the models' public configurations.
"""

from typing import Any


def _gqa(kind: str, hidden: int, width: int, layers: int, heads: int, kv: int, vocab: int,
         head_dim: int | None = None, tied: bool = False, context: int = 32768,
         **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "vocab_size": vocab, "head_dim": head_dim or hidden // heads, "tie_word_embeddings": tied,
        "max_position_embeddings": context, "rms_norm_eps": 1e-6, **more,
    }  # fmt: skip


def _qwen3moe(hidden: int, layers: int, heads: int, width: int) -> dict[str, Any]:
    return _gqa("qwen3_moe", hidden, 4 * width, layers, heads, 4, 151936, 128, context=262144,
                num_experts=128, num_experts_per_tok=8, moe_intermediate_size=width)  # fmt: skip


def _mla(hidden: int, width: int, layers: int, heads: int, vocab: int, q_rank: int | None,
         experts: int, used: int, expert: int, dense: int, shared: int = 1,
         kind: str = "deepseek_v3", context: int = 131072) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "vocab_size": vocab, "q_lora_rank": q_rank, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": experts,
        "num_experts_per_tok": used, "moe_intermediate_size": expert, "n_shared_experts": shared,
        "first_k_dense_replace": dense, "max_position_embeddings": context, "rms_norm_eps": 1e-6,
    }  # fmt: skip


def _glm(hidden: int, width: int, layers: int, experts: int, expert: int, dense: int, norm: bool):
    return _gqa("glm4_moe", hidden, width, layers, 96, 8, 151552, 128, context=131072,
                n_routed_experts=experts, num_experts_per_tok=8, n_shared_experts=1,
                moe_intermediate_size=expert, first_k_dense_replace=dense, attention_bias=True,
                use_qk_norm=norm)  # fmt: skip


KNOWN: dict[str, dict[str, Any]] = {
    "DeepSeek-V3": _mla(7168, 18432, 61, 128, 129280, 1536, 256, 8, 2048, 3),
    "Kimi-K2": _mla(7168, 18432, 61, 64, 163840, 1536, 384, 8, 2048, 1),
    "Moonlight-16B-A3B": _mla(2048, 11264, 27, 16, 163840, None, 64, 6, 1408, 1, 2, context=8192),
    "DeepSeek-V2-Lite": _mla(2048, 10944, 27, 16, 102400, None, 64, 6, 1408, 1, 2, "deepseek_v2"),
    "DeepSeek-V2": _mla(5120, 12288, 60, 128, 102400, 1536, 160, 6, 1536, 1, 2, "deepseek_v2"),
    "Qwen2-57B-A14B": _gqa("qwen2_moe", 3584, 18944, 28, 28, 4, 151936, num_experts=64,
                           num_experts_per_tok=8, moe_intermediate_size=2560,
                           shared_expert_intermediate_size=20480),
    "Qwen3-235B-A22B": _qwen3moe(4096, 94, 64, 1536),
    "Qwen3-30B-A3B": _qwen3moe(2048, 48, 32, 768),
    "GLM-4.6": _glm(5120, 12288, 92, 160, 1536, 3, True),
    "GLM-4.5-Air": _glm(4096, 10944, 46, 128, 1408, 1, False),
    "Mixtral-8x7B": _gqa("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8,
                         num_experts_per_tok=2),
    "Mixtral-8x22B": _gqa("mixtral", 6144, 16384, 56, 48, 8, 32768, num_local_experts=8,
                          num_experts_per_tok=2, context=65536),
    "Llama-3.3-70B": _gqa("llama", 8192, 28672, 80, 64, 8, 128256, context=131072),
    "Llama-3.1-8B": _gqa("llama", 4096, 14336, 32, 32, 8, 128256, context=131072),
    "Qwen3-32B": _gqa("qwen3", 5120, 25600, 64, 64, 8, 151936, 128),
    "Qwen3-8B": _gqa("qwen3", 4096, 12288, 36, 32, 8, 151936, 128),
    "Mistral-7B": _gqa("mistral", 4096, 14336, 32, 32, 8, 32768),
}  # fmt: skip
