"""Mixtral: Llama's attention, eight experts in place of its MLP."""

from ktransformers.models.base import ROTARY_PER_LAYER, Family

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
)
