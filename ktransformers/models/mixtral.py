"""Mixtral: Llama's attention, eight experts in place of its MLP."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family
from ktransformers.models.common import base_config, expert_counts, expert_width, head_dim


def config_from_gguf(gguf) -> dict:
    """MixtralConfig's fields."""
    config = base_config(gguf)
    experts, used = expert_counts(gguf)
    return config | {
        "head_dim": head_dim(gguf, config),
        "num_local_experts": experts,
        "num_experts_per_tok": used,
        "intermediate_size": expert_width(gguf, 0),
    }


FAMILY = Family(
    name="mixtral",
    gguf_architectures=("llama",),
    hf_model_types=("mixtral",),
    causal_lm="transformers.models.mixtral.modeling_mixtral:MixtralForCausalLM",
    rule_file="mixtral.yaml",
    legacy_module="modeling_mixtral",
    legacy_classes={
        "MixtralTopKRouter": ("torch.nn.Linear",),
    },
    legacy_names=(
        ROTARY_PER_LAYER,
        (r"^(model\.layers\.\d+)\.mlp\b", r"\1.block_sparse_moe"),
    ),
    config_from_gguf=config_from_gguf,
)
