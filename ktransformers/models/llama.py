"""Llama 1-3 and the many dense models that share its layout."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family

FAMILY = Family(
    name="llama",
    gguf_architectures=("llama",),
    hf_model_types=("llama",),
    causal_lm="transformers.models.llama.modeling_llama:LlamaForCausalLM",
    rule_file="llama.yaml",
    legacy_module="modeling_llama",
    legacy_names=(ROTARY_PER_LAYER,),
)
