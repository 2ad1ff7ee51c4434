"""DeepSeek-V2, V2.5 and V2-Lite: latent attention, softmax routing."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family
from ktransformers.models.latent import latent_config


def config_from_gguf(gguf) -> dict:
    """DeepseekV2Config's fields."""
    config = latent_config(gguf)
    grouped = config["n_group"] > 1
    return config | {"topk_method": "group_limited_greedy" if grouped else "greedy"}


FAMILY = Family(
    name="deepseek_v2",
    gguf_architectures=("deepseek2",),
    hf_model_types=("deepseek_v2",),
    causal_lm="transformers.models.deepseek_v2.modeling_deepseek_v2:DeepseekV2ForCausalLM",
    rule_file="deepseek2.yaml",
    legacy_module="modeling_deepseek",
    legacy_classes={
        "DeepseekV2Moe": ("DeepseekV2MoE",),
        "DeepseekV2TopkRouter": ("MoEGate",),
        "DeepseekV2RotaryEmbedding": ("DeepseekV2YarnRotaryEmbedding",),
    },
    legacy_names=(ROTARY_PER_LAYER,),
    config_from_gguf=config_from_gguf,
)
