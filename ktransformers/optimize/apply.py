"""Executes a plan: swaps modules for operators, then binds every weight.

Parents are swapped before their children (an operator adopts the children of the module it
replaces) and loaded after them (attention and MLP blocks are composed of their children's handles).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ktransformers.checkpoint.tensor_loader import GGUFLoader
from ktransformers.errors import UserError
from ktransformers.operators import registry
from ktransformers.operators.attention import Attention
from ktransformers.operators.base import Operator
from ktransformers.operators.base_operator import BaseInjectedModule, make_injected
from ktransformers.operators.card import CardError
from ktransformers.operators.default import load_torch_module
from ktransformers.operators.on_card import OnCard
from ktransformers.operators.rope import Rope

# Operators that leave the module as transformers built it: "model" names the layer loop, which
# lowering replaces as a whole.
KEPT = ("default", "model")
_LAYER = re.compile(r"model\.layers\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Placement:
    """One decision of a plan: which operator stands in for a module."""

    module: str
    operator: str
    backend: str = "cpu"
    device: str = "cpu"
    options: Any = None


def apply(
    model: nn.Module,
    placements: Iterable[Any],
    weights,
    engine,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Turns `model`, built on the meta device, into one that runs.

    placements: in pre-order of the module tree, with the fields of `Placement` (a plan's rows have
    them); modules not named stay torch modules. progress(bytes bound, bytes in all) is called after
    each module.
    Raises: UserError for a missing tensor, a wrong shape, or a module that cannot be its operator.
    """
    rules = {}
    for placement in placements:
        if placement.operator in KEPT:
            continue
        module = _find(model, placement.module)
        spec = registry.lookup(placement.operator, placement.backend)
        factory = spec.load()
        if spec.is_plugin:
            made = _make_plugin(factory, module, placement, weights, model.config)
            _replace(model, placement.module, made)
            continue
        try:
            operator = factory(module, placement.module, engine, model.config, placement.options)
        except AttributeError as error:
            raise UserError(
                f"{placement.module}: a {type(module).__name__} cannot be operator "
                f"{placement.operator}/{placement.backend} ({error})"
            ) from error
        if isinstance(operator, OnCard):
            operator.placed_on = placement.device
            rules[placement.module] = getattr(placement, "rule", None)
        _replace(model, placement.module, operator)
    _load(model, weights, progress, rules)


def _make_plugin(factory, module, placement, weights, config) -> nn.Module:
    """An operator from outside. Its mistakes are its author's, who wants the traceback."""
    loader = GGUFLoader(model=weights.gguf)
    try:
        return make_injected(factory, module, placement.module, loader, config, placement.options)
    except TypeError as error:
        raise UserError(f"{placement.module}: {placement.operator}: {error}") from error


def _load(model: nn.Module, weights, progress, rules) -> None:
    """rules: where modules on cards were placed, for messages."""
    # The rotary embedding first: attention takes its frequencies.
    names = [name for name, _ in model.named_modules() if name]
    rotary = [name for name in names if name.endswith("rotary_emb")]
    rope = None
    for name in rotary:
        module = _find(model, name)
        if isinstance(module, Rope):
            module.load(weights)
            rope = module.core
        else:
            _replace(model, name, load_torch_module(module, name, weights, model.config))
    skip = tuple(f"{name}." for name in rotary)
    order = [n for n in reversed(names) if n not in rotary and not n.startswith(skip)]
    order.sort(key=place_in_file)
    total = weights.gguf.bytes_total
    for done, name in enumerate(order, 1):
        module = _find(model, name)
        if isinstance(module, Operator):
            if isinstance(module, Attention):
                module.rope = rope
            try:
                module.load(weights)
            except CardError as error:
                place = rules.get(name) or weights.gguf.path
                raise UserError(f"{place}: {name}: {error}") from error
            except (ValueError, NotImplementedError) as error:
                raise UserError(f"{weights.gguf.path}: {name}: {error}") from error
        else:
            load_torch_module(module, name, weights, model.config)
            if isinstance(module, BaseInjectedModule):
                module.load()
        if progress:
            last = done == len(order)
            progress(total if last else min(weights.bytes_bound, total - 1), total)


def place_in_file(name: str) -> int:
    """Sorts modules as files have their tensors, layer by layer: a disk is read from one end to the
    other. Stable: within a layer children stay before parents, which come after all layers."""
    match = _LAYER.match(name)
    if match:
        return int(match[1])
    return -1 if name.endswith("embed_tokens") else 1 << 30


def _find(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"the plan names {name}, which the model does not have") from error


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
