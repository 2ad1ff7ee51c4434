"""Where a transformers parameter comes from in a GGUF file.

Names are uniform over the families: one table serves all. Three things are not one-to-one:

* llama's q and k rows are stored in rotary pairs (2i, 2i + 1); transformers rotates halves.
* experts: GGUF has gate and up apart (in old files one tensor per expert); transformers stacks.
* kv_b of MLA may be stored per head as k_b [latent, nope], transposed, and v_b [v, latent].

Imports no torch.
"""

import re
from dataclasses import dataclass

from ktransformers.errors import UserError

# Name inside a transformers layer -> name inside a GGUF block.
LAYER_TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.bias": "attn_output.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
for _shared in ("shared_expert", "shared_experts"):
    for _part in ("gate", "up", "down"):
        LAYER_TENSORS[f"mlp.{_shared}.{_part}_proj.weight"] = f"ffn_{_part}_shexp.weight"

TOP_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TensorSource:
    """One transformers parameter.

    names: the GGUF tensors it is made of, a tuple per part: ("plain": one part of one tensor).
    kind: "plain"; "pairs": rows to be taken out of rotary pairs, per head; "stack": parts stacked
        along the rows of each expert; "kv_b": (k_b, v_b).
    heads: of "pairs".
    """

    parts: tuple[tuple[str, ...], ...]
    kind: str = "plain"
    heads: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part)


def tensor_source(parameter: str, gguf, config: dict) -> TensorSource:
    """The source of one parameter. Raises: UserError naming the tensor that is missing."""
    if parameter == "lm_head.weight" and "output.weight" not in gguf.tensors:
        return TensorSource((("token_embd.weight",),))
    if parameter in TOP_TENSORS:
        return _plain(gguf, TOP_TENSORS[parameter])
    match = _LAYER.fullmatch(parameter)
    if not match:
        raise UserError(f"{gguf.path}: nothing is known of the parameter {parameter}")
    block, rest = f"blk.{match[1]}.", match[2]
    if rest == "mlp.experts.gate_up_proj":
        parts = (_experts(gguf, block, "gate", config), _experts(gguf, block, "up", config))
        return TensorSource(parts, "stack")
    if rest == "mlp.experts.down_proj":
        return TensorSource((_experts(gguf, block, "down", config),), "stack")
    if rest == "self_attn.kv_b_proj.weight" and block + "attn_kv_b.weight" not in gguf.tensors:
        k_b, v_b = block + "attn_k_b.weight", block + "attn_v_b.weight"
        if k_b in gguf.tensors and v_b in gguf.tensors:
            return TensorSource(((k_b,), (v_b,)), "kv_b")
    if rest == "post_attention_layernorm.weight" and gguf.architecture == "glm4moe":
        return _plain(gguf, block + "post_attention_norm.weight")
    if rest not in LAYER_TENSORS:
        raise UserError(f"{gguf.path}: nothing is known of the parameter {parameter}")
    if gguf.architecture == "llama" and rest.startswith(("self_attn.q_proj", "self_attn.k_proj")):
        key = "num_attention_heads" if ".q_proj" in rest else "num_key_value_heads"
        gguf.tensor(block + LAYER_TENSORS[rest])
        return TensorSource(((block + LAYER_TENSORS[rest],),), "pairs", config[key])
    return _plain(gguf, block + LAYER_TENSORS[rest])


def _plain(gguf, name: str) -> TensorSource:
    gguf.tensor(name)  # complains if it is not there
    return TensorSource(((name,),))


def _experts(gguf, block: str, part: str, config: dict) -> tuple[str, ...]:
    """One tensor of all experts, or (files before 2024-04) one per expert."""
    merged = f"{block}ffn_{part}_exps.weight"
    if merged in gguf.tensors or f"{block}ffn_{part}.0.weight" not in gguf.tensors:
        gguf.tensor(merged)
        return (merged,)
    names = tuple(f"{block}ffn_{part}.{e}.weight" for e in range(config["num_local_experts"]))
    for name in names:
        gguf.tensor(name)
    return names
