"""Qwen3, dense."""

from ktransformers.models.base import Family
from ktransformers.models.common import attention_bias, base_config, head_dim


def config_from_gguf(gguf) -> dict:
    """Qwen3Config's fields."""
    config = base_config(gguf)
    return config | {
        "head_dim": head_dim(gguf, config),
        "attention_bias": attention_bias(gguf),
        "use_sliding_window": False,
    }


FAMILY = Family(
    name="qwen3",
    gguf_architectures=("qwen3",),
    hf_model_types=("qwen3",),
    causal_lm="transformers.models.qwen3.modeling_qwen3:Qwen3ForCausalLM",
    rule_file="qwen3.yaml",
    config_from_gguf=config_from_gguf,
)
