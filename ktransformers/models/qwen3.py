"""Qwen3, dense."""

from ktransformers.models.base import Family

FAMILY = Family(
    name="qwen3",
    gguf_architectures=("qwen3",),
    hf_model_types=("qwen3",),
    causal_lm="transformers.models.qwen3.modeling_qwen3:Qwen3ForCausalLM",
    rule_file="qwen3.yaml",
)
