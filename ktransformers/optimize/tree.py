"""A model on the meta device, described for the planner: names, classes, kinds, weights.

    tree = describe(model, family, gguf)

Planning touches torch only here, and only through the model it is given.
"""

from typing import Any

from ktransformers.models.base import Family
from ktransformers.optimize.plan import ModuleInfo, WeightInfo


def describe(model: Any, family: Family, gguf: Any = None) -> list[ModuleInfo]:
    """The tree of transformers' `model`, in pre-order.

    gguf: where the weights come from (`checkpoint.gguf.GGUFFile`); without it sizes are those of
    the parameters as float32.
    Raises UserError when the file lacks a tensor that the model needs.
    """
    num_layers = model.config.num_hidden_layers
    config = model.config.to_dict()
    tree = []
    for name, module in model.named_modules():
        class_names = _class_names(type(module))
        weights = {f"{name}.{own}" if name else own: tensor for own, tensor in _own_weights(module)}
        tree.append(
            ModuleInfo(
                name=name,
                class_names=class_names,
                kind=kind_of(module) if name else "",
                legacy_classes=family.upstream_class_names(type(module).__name__),
                aliases=family.aliases(name, num_layers),
                weights={
                    parameter: _weight(parameter, tuple(tensor.shape), config, gguf)
                    for parameter, tensor in weights.items()
                },
            )
        )
    return tree


def kind_of(module: Any) -> str:
    """The operator made for a module, told by its class name and its children; "" if none is.

    By structure, not by a table of classes: a new family of the same build needs no entry.
    """
    name = type(module).__name__
    bases = {cls.__name__ for cls in type(module).__mro__}
    children = {child for child, _ in module.named_children()}
    parameters = {parameter for parameter, _ in module.named_parameters(recurse=False)}
    if "Linear" in bases:
        return "linear"
    if "Embedding" in bases and parameters:
        return "embedding"
    if name.endswith("RMSNorm"):
        return "norm.rms"
    if name.endswith("RotaryEmbedding"):
        return "rope"
    if name.endswith("Attention"):
        return "attention.mla" if "kv_b_proj" in children else "attention.gqa"
    if {"gate_proj", "up_proj", "down_proj"} <= children:
        return "mlp.swiglu"
    if {"gate", "experts"} <= children:
        return "moe.block"
    if {"gate_up_proj", "down_proj"} <= parameters:
        return "moe.experts"
    if name.lower().endswith("router"):
        return "moe.router"
    if {"embed_tokens", "layers", "norm"} <= children:
        return "model"
    return ""


def _own_weights(module: Any) -> list[tuple[str, Any]]:
    """Parameters and those buffers that a checkpoint holds, of this module alone."""
    temporary = module._non_persistent_buffers_set
    buffers = [
        (name, buffer)
        for name, buffer in module.named_buffers(recurse=False)
        if name not in temporary
    ]
    return [*module.named_parameters(recurse=False), *buffers]


def _class_names(cls: type) -> tuple[str, ...]:
    """Full names of a class and its bases, torch.nn's also as torch.nn.<Name>."""
    names = []
    for base in cls.__mro__[:-1]:
        names.append(f"{base.__module__}.{base.__qualname__}")
        if base.__module__.startswith("torch.nn."):
            names.append(f"torch.nn.{base.__qualname__}")
    return tuple(names)


def _weight(parameter: str, shape: tuple[int, ...], config: dict, gguf: Any) -> WeightInfo:
    if gguf is None:
        bare = WeightInfo((), "", shape, 0)
        return WeightInfo((), "f32", shape, bare.float_bytes)
    from ktransformers.checkpoint.naming import tensor_source

    names = tensor_source(parameter, gguf, config).names
    infos = [gguf.tensor(name) for name in names]
    types = "+".join(dict.fromkeys(info.type for info in infos))
    return WeightInfo(names, types, shape, sum(info.nbytes for info in infos))
