"""The base of all operators: an nn.Module that stands in for one of transformers' modules."""

import numpy as np
import torch
from torch import nn

from ktransformers import _core
from ktransformers.operators.engine import Engine


class Operator(nn.Module):
    """Takes the place of `module` under the same name, with the same forward contract.

    The children of the module it replaces stay its children, so that each of them can be replaced
    by a rule of its own. After `load()`, `core` is the handle of the core's operator, or None where
    the module has to run through `forward` (because a child has no handle).
    """

    def __init__(self, module: nn.Module, name: str, engine: Engine, config, options):
        super().__init__()
        self.name = name
        self.engine = engine
        self.config = config
        self.options = options
        self.core = None
        self.reason: str | None = None  # why core is None
        for child_name, child in module.named_children():
            self.add_module(child_name, child)

    def load(self, weights) -> None:
        """Binds weights (checkpoint.weights.Weights); children are loaded already."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def child_core(self, name: str):
        """The core handle of a child; notes the reason where it has none. None: no such child."""
        child = getattr(self, name, None)
        if child is None:
            return None
        core = getattr(child, "core", None)
        if core is None and self.reason is None:
            own = f"{self.name}.{name} is a torch {type(child).__name__}"
            self.reason = getattr(child, "reason", None) or own
        return core

    def make_matrix(self, blocks) -> _core.Matrix:
        """Repacks file blocks (checkpoint.weights.Blocks) for the kernels."""
        return self.engine.store.matrices(self.engine.context, blocks)[0]

    def make_matrices(self, part) -> list[_core.Matrix]:
        """The same for a Stack, as one job, or for a list of Blocks."""
        if isinstance(part, list):
            return [self.make_matrix(blocks) for blocks in part]
        return self.engine.store.matrices(self.engine.context, part)

    def extra_repr(self) -> str:
        return f"core={type(self.core).__name__}" if self.core is not None else "no core handle"


def to_rows(x: torch.Tensor) -> np.ndarray:
    """[..., n] -> float32 [rows, n], a view where possible."""
    return x.detach().to(torch.float32).reshape(-1, x.shape[-1]).contiguous().numpy()


def from_rows(y: np.ndarray, like: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """[rows, n] -> a tensor shaped like `like` but for the last axis."""
    shape = (*like.shape[:-1], width if width is not None else y.shape[-1])
    return torch.from_numpy(y).reshape(shape).to(like.dtype)
