"""A config.json as the metadata a GGUF file of that model carries. Data in, data out; no torch.

Everything that opens a model asks for GGUF keys; a Hugging Face folder answers with these. The keys
are those that llama.cpp's converters write, so that a file made from them opens anywhere.
"""

from pathlib import Path
from typing import Any

from ktransformers.errors import UserError

# model_type -> GGUF architecture
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "kimi_k2": "deepseek2",
    "glm4_moe": "glm4moe",
}  # fmt: skip
# What folders call themselves that a known class describes.
CLASS_TYPES = {"DeepseekV3ForCausalLM": "deepseek_v3", "DeepseekV2ForCausalLM": "deepseek_v2"}


class Config:
    """config.json, its values checked as they are taken. Raises: UserError with file and field."""

    def __init__(self, values: dict[str, Any], path: Path):
        self.values, self.path = values, path

    def fail(self, field: str, what: str) -> UserError:
        return UserError(f"{self.path}: {field}: {what}")

    def integer(self, field: str, least: int = 0, default: Any = ...) -> Any:
        value = self.values.get(field)
        if value is None and default is not ...:
            return default
        if type(value) is not int or not least <= value < 1 << 31:
            raise self.fail(field, f"{value!r:.60} is no integer of at least {least}")
        return value

    def number(self, field: str, default: Any = ...) -> Any:
        value = self.values.get(field)
        if value is None and default is not ...:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise self.fail(field, f"{value!r:.60} is no number")
        return float(value)

    def truth(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(field, f"{value!r:.60} is neither true nor false")
        return value

    @property
    def model_type(self) -> str:
        kind = self.values.get("model_type")
        if kind in ARCHITECTURES:
            return kind
        for name in self.values.get("architectures") or ():
            if name in CLASS_TYPES:
                return CLASS_TYPES[name]
        asks = "; it asks for code of the folder (auto_map), which is never run"
        raise UserError(
            f"{self.path}: model type {kind!r:.60} is not known (known: "
            f"{', '.join(sorted(ARCHITECTURES))})" + (asks if self.values.get("auto_map") else "")
        )

    @property
    def architecture(self) -> str:
        return ARCHITECTURES[self.model_type]

    @property
    def head_dim(self) -> int:
        hidden, heads = self.integer("hidden_size", 1), self.integer("num_attention_heads", 1)
        return self.integer("head_dim", 1, default=hidden // heads)

    @property
    def experts(self) -> int:
        """Routed experts; 0 in a dense model."""
        for field in ("n_routed_experts", "num_local_experts", "num_experts"):
            if self.values.get(field) is not None:
                return self.integer(field)
        return 0

    @property
    def dense_layers(self) -> int:
        """Leading layers without experts."""
        default = 0 if self.architecture in ("deepseek2", "glm4moe") else None
        return self.integer("first_k_dense_replace", default=default) or 0

    def rotary_share(self) -> float:
        """The part of each head that is rotated."""
        default = 0.5 if self.architecture == "glm4moe" else 1.0
        if (share := self.rope().get("partial_rotary_factor")) is not None:
            return float(share)
        return self.number("partial_rotary_factor", default)

    def rope(self) -> dict[str, Any]:
        """transformers' `rope_parameters`, also from the older two fields."""
        given = self.values.get("rope_parameters")
        scaling = self.values.get("rope_scaling") if given is None else given
        if scaling is not None and not isinstance(scaling, dict):
            raise self.fail("rope_scaling", f"{scaling!r:.60} is no object")
        rope = dict(scaling or {})
        rope.setdefault("rope_type", rope.pop("type", None) or "default")
        rope.setdefault("rope_theta", self.values.get("rope_theta", 10000.0))
        return rope


def metadata_of(config: Config, name: str) -> dict[str, tuple[str, Any]]:
    """{key: (GGUF type, value)}, tokenizer keys left out. Raises: UserError."""
    arch = config.architecture
    context = config.integer("max_position_embeddings", 1)
    if config.values.get("use_sliding_window", config.model_type == "mistral"):
        # Attention to everything is the same as long as nothing is further away than the window.
        context = min(context, config.integer("sliding_window", 1, default=context))
    keys: dict[str, tuple[str, Any]] = {
        "block_count": ("u32", config.integer("num_hidden_layers", 1)),
        "context_length": ("u32", context),
        "embedding_length": ("u32", config.integer("hidden_size", 1)),
        "feed_forward_length": ("u32", config.integer("intermediate_size", 1)),
        "attention.head_count": ("u32", config.integer("num_attention_heads", 1)),
        "attention.layer_norm_rms_epsilon": ("f32", config.number("rms_norm_eps", 1e-6)),
    }
    keys["attention.head_count_kv"] = (
        "u32", config.integer("num_key_value_heads", 1, keys["attention.head_count"][1])
    )  # fmt: skip
    if arch == "deepseek2":
        keys |= _latent(config)
    else:
        keys |= {f"attention.{kind}_length": ("u32", config.head_dim) for kind in ("key", "value")}
        factor = config.rotary_share()
        keys["rope.dimension_count"] = ("u32", int(config.head_dim * factor))
    if arch in ("llama", "deepseek2"):
        keys["vocab_size"] = ("u32", config.integer("vocab_size", 1))
    if config.experts:
        keys |= _experts(config)
    keys |= _rope(config)
    general = {
        "general.architecture": ("string", arch),
        "general.type": ("string", "model"),
        "general.name": ("string", name),
        "general.quantization_version": ("u32", 2),
    }
    return general | {f"{arch}.{key}": value for key, value in keys.items()}


def _latent(config: Config) -> dict[str, tuple[str, Any]]:
    nope, rope = config.integer("qk_nope_head_dim", 1), config.integer("qk_rope_head_dim", 1)
    keys = {
        "attention.key_length": ("u32", nope + rope),
        "attention.value_length": ("u32", config.integer("v_head_dim", 1)),
        "attention.kv_lora_rank": ("u32", config.integer("kv_lora_rank", 1)),
        "rope.dimension_count": ("u32", rope),
        "leading_dense_block_count": ("u32", config.dense_layers),
    }
    if rank := config.integer("q_lora_rank", default=None):
        keys["attention.q_lora_rank"] = ("u32", rank)
    return keys


def _experts(config: Config) -> dict[str, tuple[str, Any]]:
    arch = config.architecture
    keys = {
        "expert_count": ("u32", config.experts),
        "expert_used_count": ("u32", config.integer("num_experts_per_tok", 1)),
    }
    if width := config.integer("moe_intermediate_size", 1, None):
        keys["expert_feed_forward_length"] = ("u32", width)
    if width := config.integer("shared_expert_intermediate_size", default=None):
        keys["expert_shared_feed_forward_length"] = ("u32", width)
    if arch in ("deepseek2", "glm4moe"):
        sigmoid = config.model_type != "deepseek_v2"
        keys |= {
            "leading_dense_block_count": ("u32", config.dense_layers),
            "expert_shared_count": ("u32", config.integer("n_shared_experts", default=0) or 0),
            "expert_group_count": ("u32", config.integer("n_group", default=1) or 1),
            "expert_group_used_count": ("u32", config.integer("topk_group", default=1) or 1),
            "expert_gating_func": ("u32", 2 if sigmoid else 1),
            "expert_weights_scale": ("f32", config.number("routed_scaling_factor", 1.0)),
            "expert_weights_norm": ("bool", config.truth("norm_topk_prob", sigmoid)),
        }
        if config.values.get("topk_method") == "greedy":
            keys["expert_group_count"] = keys["expert_group_used_count"] = ("u32", 1)
    return keys


def _rope(config: Config) -> dict[str, tuple[str, Any]]:
    rope = config.rope()
    kind = rope["rope_type"]
    keys = {"rope.freq_base": ("f32", float(rope["rope_theta"]))}
    if kind in ("default", "llama3"):  # llama3's divisors are a tensor (rope_freqs.weight)
        return keys
    if kind not in ("linear", "yarn"):
        raise config.fail("rope_scaling", f"type {kind!r:.40}: linear, yarn and llama3 are known")
    keys["rope.scaling.type"] = ("string", kind)
    keys["rope.scaling.factor"] = ("f32", float(rope["factor"]))
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings")
        context = original or config.integer("max_position_embeddings", 1)
        keys["rope.scaling.original_context_length"] = ("u32", int(context))
        keys["rope.scaling.yarn_beta_fast"] = ("f32", float(rope.get("beta_fast") or 32.0))
        keys["rope.scaling.yarn_beta_slow"] = ("f32", float(rope.get("beta_slow") or 1.0))
        if mscale := rope.get("mscale_all_dim"):
            keys["rope.scaling.yarn_log_multiplier"] = ("f32", 0.1 * float(mscale))
    return keys
