"""The other side of every comparison: transformers in fp32, fed by the gguf package alone.

    model = Reference.load(path, families()["qwen3moe"])
    logits = model.logits(ids)

Nothing of ktransformers is imported. The configuration is hand-written (families.py), the weights
are what the gguf package's NumPy decoders give, and the mapping below is written from the two
formats' descriptions. Layouts that differ:

* llama's q and k: GGUF pairs rotary dimensions (2i, 2i+1), transformers (i, i + half).
* experts: GGUF has gate and up apart, transformers stacks them, gate first.
* kv_b: GGUF may store it per head as k_b [latent, nope] (transposed) and v_b [v, latent].
"""

import re
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from transformers.initialization import no_init_weights

from tests.support.families import Family

SMOLLM2 = Family(
    "smollm2",
    "llama",
    "Llama",
    {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
SMOLLM2_SLICED = Family(
    "smollm2_sliced",
    "llama",
    "Mixtral",
    SMOLLM2.config | {"intermediate_size": 192, "num_local_experts": 8, "num_experts_per_tok": 8},
)

# GGUF name of a part of a layer -> name in the transformers model. One-to-one tensors only.
SAME = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
SHARED = {
    "Qwen2Moe": "shared_expert",
    "DeepseekV2": "shared_experts",
    "DeepseekV3": "shared_experts",
    "Glm4Moe": "shared_experts",
}


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """{GGUF name: float32 array in torch's order of dimensions}."""
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        weights[tensor.name] = np.ascontiguousarray(values, np.float32).reshape(shape)
    return weights


def unpair_rotary(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * (half, 2), in] of rotary pairs -> [heads * (2, half), in]."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def map_layer(parts: dict[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """One layer: {GGUF name without "blk.N."} -> {transformers name without "model.layers.N."}."""
    parts = dict(parts)
    config, out = family.config, {}
    if family.architecture == "llama":
        for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            key = f"attn_{name}.weight"
            parts[key] = unpair_rotary(parts[key], config[heads])
    if "ffn_gate_exps.weight" in parts:
        halves = [parts.pop("ffn_gate_exps.weight"), parts.pop("ffn_up_exps.weight")]
        out["mlp.experts.gate_up_proj"] = np.concatenate(halves, axis=1)
    if "attn_k_b.weight" in parts:
        k = parts.pop("attn_k_b.weight").transpose(0, 2, 1)
        kv = np.concatenate([k, parts.pop("attn_v_b.weight")], axis=1)
        out["self_attn.kv_b_proj.weight"] = kv.reshape(-1, kv.shape[-1])
    for part in ("gate", "up", "down"):
        if f"ffn_{part}_shexp.weight" in parts:
            name = f"mlp.{SHARED[family.model]}.{part}_proj.weight"
            out[name] = parts.pop(f"ffn_{part}_shexp.weight")
    if "ffn_gate_inp_shexp.weight" in parts:
        gate = parts.pop("ffn_gate_inp_shexp.weight")
        out["mlp.shared_expert_gate.weight"] = gate.reshape(1, -1)
    return out | {SAME[name]: values for name, values in parts.items()}


def map_weights(weights: dict[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """All parameters and buffers of the transformers model by name."""
    out = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
    }
    tied = family.config["tie_word_embeddings"]
    out["lm_head.weight"] = weights["token_embd.weight" if tied else "output.weight"]
    layers: dict[str, dict] = {}
    for name, values in weights.items():
        if match := re.fullmatch(r"blk\.(\d+)\.(.+)", name):
            layers.setdefault(match[1], {})[match[2]] = values
    for layer, parts in layers.items():
        mapped = map_layer(parts, family)
        out |= {f"model.layers.{layer}.{name}": values for name, values in mapped.items()}
    return out


def build(family: Family) -> transformers.PreTrainedModel:
    """The transformers model with uninitialised fp32 weights, plain attention, plain experts."""
    config = getattr(transformers, f"{family.model}Config")(**family.config)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with no_init_weights():
        return getattr(transformers, f"{family.model}ForCausalLM")(config).float().eval()


@dataclass
class Reference:
    model: transformers.PreTrainedModel

    @classmethod
    def load(cls, path: Path, family: Family) -> "Reference":
        """The model of a GGUF file. Every parameter must be given exactly once, with its shape."""
        model = build(family)
        mapped = map_weights(read_weights(path), family)
        slots = dict(model.named_parameters(remove_duplicate=False))
        slots |= {k: v for k, v in model.named_buffers() if k.endswith("correction_bias")}
        if slots.keys() != mapped.keys():
            raise ValueError(f"unmatched tensors: {sorted(slots.keys() ^ mapped.keys())}")
        with torch.no_grad():
            for name, slot in slots.items():
                if tuple(slot.shape) != mapped[name].shape:
                    raise ValueError(f"{name}: {mapped[name].shape}, expected {tuple(slot.shape)}")
                slot.copy_(torch.tensor(mapped[name]))
        return cls(model)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray:
        """One forward over the whole sequence, no cache: [tokens, vocabulary] float32."""
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()

    @torch.no_grad()
    def greedy(self, ids: list[int], count: int, stop: int | None = None):
        """Greedy continuation: (tokens, margins); a margin is best minus second-best logit."""
        tokens, margins, cache, step = [], [], None, list(ids)
        for _ in range(count):
            out = self.model(input_ids=torch.tensor([step]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = torch.topk(out.logits[0, -1], 2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            if tokens[-1] == stop:
                break
            step = tokens[-1:]
        return tokens, margins
