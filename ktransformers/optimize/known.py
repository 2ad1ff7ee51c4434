"""Facts of published models in the quants people publish, without a file. No torch, no network."""

import difflib
import math
from pathlib import Path
from typing import Any

from ktransformers.checkpoint.hf_metadata import Config, metadata_of
from ktransformers.checkpoint.pieces import type_bytes
from ktransformers.checkpoint.presets import PRESETS, Preset, preset_type
from ktransformers.errors import UserError
from ktransformers.models.known import KNOWN
from ktransformers.optimize.facts import ModelFacts, facts_of

# Mixes that are published, beside those `quantize` writes; the dynamic ones are near these.
PUBLISHED = {
    preset.name.lower(): preset
    for preset in (
        Preset("IQ1_S", 24, "iq1_s", "iq2_xxs", "q5_k"),
        Preset("IQ2_XXS", 19, "iq2_xxs", "q2_k", "q5_k"),
        Preset("Q2_K", 10, "q2_k", "q3_k", "q6_k"),
        Preset("IQ3_XXS", 23, "iq3_xxs", "iq3_s", "q5_k"),
        Preset("Q3_K_M", 12, "q3_k", "q5_k", "q6_k"),
        PRESETS["iq4_xs"],
        PRESETS["q4_k_m"],
        Preset("Q5_K_M", 17, "q5_k", "q6_k", "q6_k"),
        PRESETS["q6_k"],
        PRESETS["q8_0"],
        PRESETS["bf16"],
    )
}


def known_facts(name: str) -> ModelFacts:
    """ "Qwen3-30B-A3B:Q4_K_M" -> its facts; Q4_K_M where no quant is named. Raises: UserError."""
    model, _, quant = name.partition(":")
    values = next((v for key, v in KNOWN.items() if key.lower() == model.lower()), None)
    if values is None:
        close = difflib.get_close_matches(model, KNOWN, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(KNOWN)}"
        raise UserError(f"model {model!r} is not known here; {hint} or give --gguf_path FILE")
    chosen = PUBLISHED.get((quant or "q4_k_m").lower())
    if chosen is None:
        names = ", ".join(preset.name for preset in PUBLISHED.values())
        raise UserError(f"{name}: quant {quant!r} is not known; known: {names}")
    return make_facts(next(k for k in KNOWN if k.lower() == model.lower()), values, chosen)


def make_facts(name: str, values: dict[str, Any], chosen: Preset) -> ModelFacts:
    """The facts of a configuration in a mix of types."""
    config = Config(values, Path(name))
    keys = {key: value for key, (_, value) in metadata_of(config, name).items()}
    tensors = []
    layers, tied = values["num_hidden_layers"], values.get("tie_word_embeddings", False)
    for tensor, shape in shapes_of(config).items():
        kind = preset_type(tensor, shape, chosen, layers, config.experts, tied)
        tensors.append((tensor, shape, type_bytes(kind, math.prod(shape))))
    return facts_of(f"{name} {chosen.name}", tensors, keys)


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """{GGUF tensor: shape} of the matrices of a configuration; vectors weigh nothing."""
    hidden, vocab = config.integer("hidden_size", 1), config.integer("vocab_size", 1)
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden)}
    for layer in range(config.integer("num_hidden_layers", 1)):
        parts = _attention(config, hidden)
        if config.experts and layer >= config.dense_layers:
            parts |= _sparse(config, hidden)
        else:
            parts |= _swiglu("", hidden, config.integer("intermediate_size", 1))
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in parts.items()}
    if not config.truth("tie_word_embeddings", False):
        found["output.weight"] = (vocab, hidden)
    return found


def _attention(config: Config, hidden: int) -> dict[str, tuple[int, ...]]:
    heads = config.integer("num_attention_heads", 1)
    latent = config.integer("kv_lora_rank", 1, None)
    if latent is None:
        q = heads * config.head_dim
        kv = config.integer("num_key_value_heads", 1, heads) * config.head_dim
        return {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
                "attn_output": (hidden, q)}  # fmt: skip
    nope, rope = config.integer("qk_nope_head_dim", 1), config.integer("qk_rope_head_dim", 1)
    v, rank = config.integer("v_head_dim", 1), config.integer("q_lora_rank", 1, None)
    parts = {
        "attn_kv_a_mqa": (latent + rope, hidden),
        "attn_kv_b": (heads * (nope + v), latent),
        "attn_output": (hidden, heads * v),
    }
    if rank is None:
        return parts | {"attn_q": (heads * (nope + rope), hidden)}
    return parts | {"attn_q_a": (rank, hidden), "attn_q_b": (heads * (nope + rope), rank)}


def _sparse(config: Config, hidden: int) -> dict[str, tuple[int, ...]]:
    width = config.integer("moe_intermediate_size", 1, config.integer("intermediate_size", 1))
    experts = config.experts
    parts = {"ffn_gate_inp": (experts, hidden)}
    parts |= {n: (experts, *shape) for n, shape in _swiglu("_exps", hidden, width).items()}
    shared = (config.integer("n_shared_experts", default=0) or 0) * width
    shared = config.integer("shared_expert_intermediate_size", default=shared)
    if shared:
        parts |= _swiglu("_shexp", hidden, shared)
    return parts


def _swiglu(suffix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"ffn_gate{suffix}": (width, hidden), f"ffn_up{suffix}": (width, hidden),
            f"ffn_down{suffix}": (hidden, width)}  # fmt: skip
