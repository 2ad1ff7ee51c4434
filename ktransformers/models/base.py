"""What the project knows about one architecture family."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One architecture family; each file of this folder holds one as FAMILY.

    causal_lm: "module:Class" of the transformers model; imported by `hf_class()` only.
    rule_file: the shipped rules, a file name in optimize_rules/.
    legacy_module: upstream's file for the family; its classes mostly had the names of today's.
    legacy_classes: transformers' class name -> what else the same module was in upstream's models,
        full names or names in `legacy_module`, so that upstream's `match.class` finds it.
    legacy_names: (pattern, replacement) pairs for `re.sub` on a dotted module name, giving the
        names it had there; `{layer}` in a replacement stands for every layer in turn.
    """

    name: str
    gguf_architectures: tuple[str, ...]
    hf_model_types: tuple[str, ...]
    causal_lm: str
    rule_file: str
    legacy_module: str | None = None
    legacy_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    legacy_names: tuple[tuple[str, str], ...] = ()
    config_from_gguf: Callable[[Any], dict] | None = None
    tensor_names: Callable[[Any], dict] | None = None

    def hf_class(self) -> type:
        """The transformers class. Imports transformers and torch."""
        module, _, name = self.causal_lm.partition(":")
        return getattr(importlib.import_module(module), name)

    def upstream_class_names(self, name: str) -> tuple[str, ...]:
        """The full names in upstream's models of a module whose transformers class is `name`."""
        if self.legacy_module is None:
            return ()
        prefix = f"ktransformers.models.{self.legacy_module}."
        others = self.legacy_classes.get(name, ())
        return (prefix + name, *(other if "." in other else prefix + other for other in others))

    def aliases(self, name: str, num_layers: int) -> tuple[str, ...]:
        """The names a module called `name` had in upstream's models, other than `name` itself."""
        found: list[str] = []
        for pattern, replacement in self.legacy_names:
            if re.search(pattern, name):
                layers = range(num_layers) if "{layer}" in replacement else range(1)
                old = re.sub(pattern, replacement, name)
                found += [old.replace("{layer}", str(layer)) for layer in layers]
        return tuple(alias for alias in dict.fromkeys(found) if alias != name)


# Upstream's models rotate inside each attention module; transformers 5 does it once for all layers.
ROTARY_PER_LAYER = (r"^model\.rotary_emb$", "model.layers.{layer}.self_attn.rotary_emb")
