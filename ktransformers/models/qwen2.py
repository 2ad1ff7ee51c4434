"""Qwen2 and Qwen2.5, dense."""

from ktransformers.models.base import Family
from ktransformers.models.common import base_config


def config_from_gguf(gguf) -> dict:
    """Qwen2Config's fields."""
    return base_config(gguf) | {"use_sliding_window": False}


FAMILY = Family(
    name="qwen2",
    gguf_architectures=("qwen2",),
    hf_model_types=("qwen2",),
    causal_lm="transformers.models.qwen2.modeling_qwen2:Qwen2ForCausalLM",
    rule_file="qwen2.yaml",
    config_from_gguf=config_from_gguf,
)
