"""The base of operators people write in Python: upstream's class, at upstream's address.

    class Clipped(BaseInjectedModule):
        def forward(self, x):
            return self.orig_module(x).clamp(-100, 100)

A subclass is an operator from the moment its class statement has run, under its full name
("my_package.my_file.Clipped"): rules may name it, in either dialect. Rules never import anything;
whoever writes the script, or says --allow-plugin my_package, does.
"""

from typing import Any

import torch
from torch import nn

from ktransformers.operators.registry import REGISTRY, Kwargs


class BaseInjectedModule(nn.Module):
    """Stands in for `orig_module` and shares its parameters, buffers and children with it.

    key: the module's name in the model, "model.layers.3.mlp". gguf_loader: checkpoint.tensor_loader
    GGUFLoader of the file. config: transformers' configuration. kwargs: what the rule says under
    kwargs (or options); those the subclass does not take end here.

    What is not found here is looked up in orig_module, and new attributes are set on it. Children
    are matched by rules of their own and are loaded when `load` is called.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REGISTRY.register_plugin(f"{cls.__module__}.{cls.__qualname__}", cls)

    def __init__(
        self,
        key: str,
        gguf_loader: Any,
        config: Any,
        orig_module: nn.Module,
        prefill_device: str = "cpu",
        generate_device: str = "cpu",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for name in ("_parameters", "_buffers", "_modules"):
            self.__dict__[name] = orig_module.__dict__[name]
        self.__dict__.update(
            orig_module=orig_module, key=key, gguf_loader=gguf_loader, config=config,
            prefill_device=prefill_device, generate_device=generate_device,
            device=torch.device("cpu"), training=orig_module.training,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "orig_module" not in self.__dict__:
                raise
            return getattr(self.__dict__["orig_module"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ or "orig_module" not in self.__dict__:
            super().__setattr__(name, value)
        else:
            setattr(self.__dict__["orig_module"], name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.orig_module.forward(*args, **kwargs)

    def load(self) -> None:
        """Called once, when the children have their weights. The module's own parameters have
        theirs too: transformers' ones, as float32."""


def make_injected(cls: type, module: nn.Module, name: str, loader: Any, config: Any, options: Any):
    """An instance, made as upstream makes it."""
    values = dict(options.values) if isinstance(options, Kwargs) else {}
    return cls(name, loader, config, module, **values)
