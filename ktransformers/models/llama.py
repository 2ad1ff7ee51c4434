"""Llama 1-3, Mistral and the many dense models that share its layout."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family
from ktransformers.models.common import attention_bias, base_config, head_dim


def config_from_gguf(gguf) -> dict:
    """LlamaConfig's fields."""
    config = base_config(gguf)
    return config | {"head_dim": head_dim(gguf, config), "attention_bias": attention_bias(gguf)}


FAMILY = Family(
    name="llama",
    gguf_architectures=("llama",),
    hf_model_types=("llama", "mistral"),
    causal_lm="transformers.models.llama.modeling_llama:LlamaForCausalLM",
    rule_file="llama.yaml",
    legacy_module="modeling_llama",
    legacy_names=(ROTARY_PER_LAYER,),
    config_from_gguf=config_from_gguf,
)
