"""linear/cpu: y = x W^T + b on the file's own quantised blocks."""

import torch
from torch import nn

from ktransformers import _core
from ktransformers.operators.base import Operator, from_rows, to_rows


class Linear(Operator):
    """Replaces nn.Linear. x: [..., in_features] -> [..., out_features]."""

    def __init__(self, module: nn.Linear, name: str, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.in_features, self.out_features = module.in_features, module.out_features
        self.has_bias = module.bias is not None
        # The head is read once per token and decides: near exact for every row.
        self.always_exact = name == "lm_head"
        self._joined: torch.Tensor | None = None  # dequantised, once this module itself is called

    def load(self, weights) -> None:
        self._weights = weights
        if weights.source(f"{self.name}.weight").kind == "kv_b":
            return self._load_split(weights)
        blocks = weights.matrix(f"{self.name}.weight", self.out_features, self.in_features)
        bias = weights.floats(f"{self.name}.bias") if self.has_bias else None
        self.core = _core.Linear(self.make_matrix(blocks), bias)

    def _load_split(self, weights) -> None:
        """kv_b stored as two tensors: attention takes them apart (split_kv); here they are joined
        for whoever calls this module itself."""
        self.split = weights.source(f"{self.name}.weight").names
        self.reason = f"{self.name} is stored as {' and '.join(self.split)}"
        weights.promise(self.split)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantised weight, made anew at each access: for inspection."""
        return torch.from_numpy(self._floats())

    def _floats(self):
        return self._weights.floats(f"{self.name}.weight", (self.out_features, self.in_features))

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.core is None:
            if self._joined is None:
                self._joined = self.weight
            return nn.functional.linear(x, self._joined.to(x.dtype))
        rows = to_rows(x)
        exact = self.always_exact
        rounding = self.engine.exact(len(rows)) if exact else self.engine.rounding_for(len(rows))
        return from_rows(self.core.forward(self.engine.context, rows, rounding), x)
