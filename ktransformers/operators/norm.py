"""norm.rms: x / sqrt(mean(x^2) + eps) * weight. On a card too: layers there take `values`."""

import torch

from ktransformers import _core
from ktransformers.operators.base import Operator, from_rows, to_rows


class RmsNorm(Operator):
    """Replaces the families' RMSNorm classes. x: [..., n] -> [..., n]."""

    def __init__(self, module, name, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.width = module.weight.shape[0]
        self.variance_epsilon = module.variance_epsilon

    def load(self, weights) -> None:
        self.values = weights.floats(f"{self.name}.weight", (self.width,))
        self.core = _core.RmsNorm(self.values, self.variance_epsilon)

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return from_rows(self.core.forward(self.engine.context, to_rows(x)), x)
