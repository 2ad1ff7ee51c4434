"""mlp.swiglu/cpu: down(silu(gate x) * up x)."""

import torch

from ktransformers import _core
from ktransformers.operators.base import Operator, from_rows, to_rows


class SwigluMlp(Operator):
    """Replaces the families' dense MLP. x: [..., hidden] -> [..., hidden]."""

    def load(self, weights) -> None:
        handles = [self.child_core(name) for name in ("gate_proj", "up_proj", "down_proj")]
        if self.reason is None:
            self.core = _core.Mlp(*handles)

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.core is None:
            return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        rows = to_rows(x)
        rounding = self.engine.rounding_for(len(rows))
        return from_rows(self.core.forward(self.engine.context, rows, rounding), x)
