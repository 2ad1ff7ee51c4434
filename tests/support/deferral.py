"""Deferred experts in torch: the definition that cards are held against.

With x_k what the routed experts of layer k read, and of a token's choices there D_k the `count` of
the least weights (of equal ones the later) that the CPU has, where layer k + 1 has experts on the
CPU too, else none:

    experts(k) = sum of w e(x_k) over what is not in D_k + sum of w e(x_k-1) over D_k-1
"""

from collections.abc import Callable

import torch


class Deferral:
    """Replaces the routed experts of a transformers model; `on` says whether steps defer.

    on_cpu(layer, expert ids) -> which of them are the CPU's, a boolean tensor of their shape.
    """

    def __init__(self, model, count: int, on_cpu: Callable[[int, torch.Tensor], torch.Tensor]):
        self.count, self.on_cpu, self.on = count, on_cpu, False
        self.owed: dict[int, torch.Tensor] = {}  # by the layer that adds it
        layers = model.model.layers
        self.routed = {i for i, layer in enumerate(layers) if hasattr(layer.mlp, "experts")}
        for index in self.routed:
            self.replace(index, layers[index].mlp.experts)

    def replace(self, index: int, experts) -> None:
        plain = experts.forward

        def forward(x, ids, weights):
            if not self.on:
                return plain(x, ids, weights)
            order = torch.argsort(weights, dim=-1, descending=True, stable=True)
            rank = torch.argsort(order, dim=-1)
            later = (rank >= weights.shape[-1] - self.count) & self.on_cpu(index, ids)
            if index + 1 not in self.routed:
                later &= False
            now = plain(x, ids, weights * ~later)
            if index + 1 in self.routed:
                self.owed[index + 1] = plain(x, ids, weights * later)
            return now + self.owed.pop(index, torch.zeros_like(now))

        experts.forward = forward
