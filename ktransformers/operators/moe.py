"""moe.router, moe.experts and moe.block on the CPU."""

import torch

from ktransformers import _core
from ktransformers.operators.base import Operator, from_rows, to_rows


class Router(Operator):
    """Replaces the families' top-k routers. x: [..., hidden] -> (logits, weights, ids).

    weights: float32 [rows, k]; ids: int64 [rows, k]. The logits are not kept: None.
    """

    def __init__(self, module, name, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.num_experts = module.num_experts
        self.hidden_dim = module.hidden_dim
        self.top_k = module.top_k
        self.has_bias = hasattr(module, "e_score_correction_bias")
        self.topk_method = getattr(module, "topk_method", None)

    def load(self, weights) -> None:
        blocks = weights.matrix(f"{self.name}.weight", self.num_experts, self.hidden_dim)
        self.core = _core.Router(
            _core.Linear(self.make_matrix(blocks)), num_experts_per_tok=self.top_k,
            **self.routing(weights),
        )  # fmt: skip

    def routing(self, weights) -> dict:
        """The core's router options for this family."""
        config = self.config
        scale = getattr(config, "routed_scaling_factor", 1.0)
        if self.has_bias:  # DeepSeek-V3
            return {
                "sigmoid": True,
                "bias": weights.floats(f"{self.name}.e_score_correction_bias", (self.num_experts,)),
                "n_group": config.n_group,
                "topk_group": config.topk_group,
                "group_sum_of_two": True,
                "norm_topk_prob": config.norm_topk_prob,
                "routed_scaling_factor": scale,
            }
        if self.topk_method is not None:  # DeepSeek-V2 never normalises
            grouped = self.topk_method == "group_limited_greedy"
            return {
                "n_group": config.n_group if grouped else 1,
                "topk_group": config.topk_group if grouped else 1,
                "routed_scaling_factor": scale,
            }
        # Mixtral has no such field and always normalises.
        return {"norm_topk_prob": getattr(config, "norm_topk_prob", True)}

    def forward(self, x: torch.Tensor, *args, **kwargs):
        ids, weights = self.core.forward(self.engine.context, to_rows(x))
        return None, torch.from_numpy(weights), torch.from_numpy(ids).to(torch.int64)


class Experts(Operator):
    """Replaces the stacked experts. (x [rows, hidden], ids [rows, k], weights [rows, k])."""

    def __init__(self, module, name, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.num_experts, self.hidden_dim, self.intermediate_dim = (
            module.gate_up_proj.shape[0],
            module.down_proj.shape[1],
            module.down_proj.shape[2],
        )

    def load(self, weights) -> None:
        shape = (self.intermediate_dim, self.hidden_dim)
        gate, up = weights.experts(f"{self.name}.gate_up_proj", self.num_experts, *shape)
        (down,) = weights.experts(f"{self.name}.down_proj", self.num_experts, *shape[::-1])
        self.matrices = [self.make_matrices(part) for part in (gate, up, down)]
        self.core = _core.Experts(*self.matrices)

    def __len__(self) -> int:
        return self.num_experts

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = to_rows(x)
        out = self.core.forward(
            self.engine.context,
            rows,
            ids.to(torch.int32).numpy(),
            weights.detach().to(torch.float32).numpy(),
            self.engine.rounding_for(len(rows)),
        )
        return from_rows(out, x)


class Block(Operator):
    """Replaces the MoE block: router, experts and, where the family has one, a shared expert."""

    def load(self, weights) -> None:
        router, experts = self.child_core("gate"), self.child_core("experts")
        name = next((n for n in ("shared_experts", "shared_expert") if hasattr(self, n)), None)
        shared = self.child_core(name) if name else None
        has_gate = hasattr(self, "shared_expert_gate")
        shared_gate = self.child_core("shared_expert_gate") if has_gate else None
        self.shared_name = name
        if self.reason is None:
            self.core = _core.MoeBlock(router, experts, shared, shared_gate)

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.core is not None:
            rows = to_rows(x)
            rounding = self.engine.rounding_for(len(rows))
            return from_rows(self.core.forward(self.engine.context, rows, rounding), x)
        flat = x.reshape(-1, x.shape[-1])
        _, weights, ids = self.gate(flat)
        out = self.experts(flat, ids, weights)
        if self.shared_name:
            shared = getattr(self, self.shared_name)(flat)
            if hasattr(self, "shared_expert_gate"):
                shared = torch.sigmoid(self.shared_expert_gate(flat)) * shared
            out = out + shared
        return out.reshape(x.shape)
