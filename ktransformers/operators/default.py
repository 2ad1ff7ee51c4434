"""default/torch: the module transformers built, with its weights dequantised to float32."""

import torch
from torch import nn

from ktransformers.operators.rope import real_rotary


def load_torch_module(module: nn.Module, name: str, weights, config) -> nn.Module:
    """Gives a module on the meta device its own parameters and buffers (not its children's).

    Returns the module to put in its place: itself, but for the rotary embedding, whose buffers are
    computed and not stored.
    """
    if hasattr(module, "inv_freq"):
        return real_rotary(module, config, weights.gguf)
    for kind, items in (
        ("parameter", list(module.named_parameters(recurse=False))),
        ("buffer", list(module.named_buffers(recurse=False))),
    ):
        for key, value in items:
            if not value.is_meta:
                continue
            full = f"{name}.{key}" if name else key
            floats = torch.from_numpy(weights.floats(full, tuple(value.shape)))
            if kind == "parameter":
                setattr(module, key, nn.Parameter(floats, requires_grad=False))
            else:
                setattr(module, key, nn.Buffer(floats, persistent=key in module.state_dict()))
    return module
