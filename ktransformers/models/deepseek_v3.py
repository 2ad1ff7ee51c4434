"""DeepSeek-V3 and R1, Moonlight, Kimi-K2: latent attention, sigmoid routing with a bias."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family
from ktransformers.models.latent import latent_config


def config_from_gguf(gguf) -> dict:
    """DeepseekV3Config's fields."""
    return latent_config(gguf) | {"rope_interleave": True}


FAMILY = Family(
    name="deepseek_v3",
    gguf_architectures=("deepseek2",),
    hf_model_types=("deepseek_v3",),
    causal_lm="transformers.models.deepseek_v3.modeling_deepseek_v3:DeepseekV3ForCausalLM",
    rule_file="deepseek2.yaml",
    legacy_module="modeling_deepseek_v3",
    legacy_classes={
        "DeepseekV3TopkRouter": ("MoEGate",),
        "DeepseekV3RotaryEmbedding": ("DeepseekV3YarnRotaryEmbedding",),
    },
    legacy_names=(ROTARY_PER_LAYER,),
    config_from_gguf=config_from_gguf,
)
