"""Finds the family of a model by its transformers model type or its GGUF architecture."""

import importlib
from functools import cache

from ktransformers.errors import UserError
from ktransformers.models.base import Family

MODULES = (
    "llama",
    "mixtral",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
)


@cache
def families() -> tuple[Family, ...]:
    """Every supported family, in the order of MODULES."""
    return tuple(importlib.import_module(f"ktransformers.models.{name}").FAMILY for name in MODULES)


def family_for(name: str) -> Family:
    """The family of a transformers model type, or of a GGUF architecture only one family has.

    A GGUF of architecture "llama" may be Llama or Mixtral, "deepseek2" V2 or V3: there the model
    type that models.config derives decides.
    Raises UserError when no family, or more than one, has that name.
    """
    for family in families():
        if name in family.hf_model_types:
            return family
    found = [family for family in families() if name in family.gguf_architectures]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(family.name for family in found)
        raise UserError(f"architecture {name} is shared by {names}; the model type has to decide")
    known = ", ".join(sorted({a for f in families() for a in f.gguf_architectures}))
    raise UserError(
        f"unknown model architecture {name!r}; supported GGUF architectures: {known}; "
        "docs/families.md tells how to add one"
    )


def family_of(gguf) -> Family:
    """The family of an open GGUF file. Raises UserError for an unsupported architecture."""
    if gguf.architecture == "llama":
        experts = gguf.integer("llama.expert_count", 0, 1 << 16, default=0)
        return family_for("mixtral" if experts else "llama")
    if gguf.architecture == "deepseek2":
        from ktransformers.models.latent import uses_sigmoid

        return family_for("deepseek_v3" if uses_sigmoid(gguf) else "deepseek_v2")
    return family_for(gguf.architecture)
