"""attention.gqa and attention.mla on the CPU, over the model's paged cache."""

import numpy as np
import torch

from ktransformers import _core
from ktransformers.errors import UserError
from ktransformers.operators.base import Operator, to_rows


class Attention(Operator):
    """Replaces self_attn of a decoder layer; which rows and sequences it sees is engine.rows."""

    def __init__(self, module, name, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.layer_idx = module.layer_idx
        self.scaling = module.scaling
        self.rope: _core.Rope | None = None  # the model's, set before load()

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        """[batch, length, hidden] -> ([batch, length, hidden], None); padding rows give zeros."""
        rows = self.engine.rows
        if rows is None or self.core is None:
            raise UserError(
                f"{self.name}: {self.reason or 'attention runs inside the model only'}; "
                "call the model, not the module"
            )
        x = to_rows(hidden_states)
        out = np.zeros_like(x)
        out[rows.valid] = self.core.forward(
            self.engine.context, x[rows.valid], rows.position, rows.sequence,
            rows.rounding[rows.valid], rows.sequences, self.layer_idx,
        )  # fmt: skip
        return torch.from_numpy(out).reshape(hidden_states.shape), None


class GqaAttention(Attention):
    """Grouped-query attention with q_proj, k_proj, v_proj, o_proj and optional q_norm, k_norm."""

    def load(self, weights) -> None:
        handles = [self.child_core(n) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
        norms = [self.child_core(n) if hasattr(self, n) else None for n in ("q_norm", "k_norm")]
        if self.rope is None:
            self.reason = self.reason or "the model's rotary embedding has no core handle"
        if self.reason:
            return
        config = self.config
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        self.core = _core.GqaAttention(
            *handles,
            self.rope,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            scale=self.scaling,
            q_norm=norms[0],
            k_norm=norms[1],
        )


class MlaAttention(Attention):
    """Multi-head latent attention with q_proj, or q_a_proj, q_a_layernorm and q_b_proj."""

    def __init__(self, module, name, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.q_lora_rank = module.q_lora_rank

    def load(self, weights) -> None:
        config = self.config
        if self.q_lora_rank is None:
            query = {"q": self.child_core("q_proj")}
        else:
            query = {
                "q_a": self.child_core("q_a_proj"),
                "q_a_norm": self.child_core("q_a_layernorm"),
                "q_b": self.child_core("q_b_proj"),
            }
        handles = {
            "kv_a": self.child_core("kv_a_proj_with_mqa"),
            "kv_a_norm": self.child_core("kv_a_layernorm"),
            "o": self.child_core("o_proj"),
        }
        split = getattr(self.kv_b_proj, "split", None)
        if split:
            heads, latent = config.num_attention_heads, config.kv_lora_rank
            k_b = weights.heads(split[0], heads, latent, config.qk_nope_head_dim)
            v_b = weights.heads(split[1], heads, config.v_head_dim, latent)
            handles["k_b"] = self.make_matrices(k_b)
            handles["v_b"] = self.make_matrices(v_b)
        else:
            handles["kv_b"] = self.child_core("kv_b_proj")
        if self.rope is None:
            self.reason = self.reason or "the model's rotary embedding has no core handle"
        if self.reason:
            return
        self.core = _core.MlaAttention(
            **query,
            **handles,
            rope=self.rope,
            num_heads=config.num_attention_heads,
            kv_lora_rank=config.kv_lora_rank,
            qk_nope_head_dim=config.qk_nope_head_dim,
            qk_rope_head_dim=config.qk_rope_head_dim,
            v_head_dim=config.v_head_dim,
            scale=self.scaling,
            expand="never" if self.options.absorb_prompts else "long_prompts",
        )
