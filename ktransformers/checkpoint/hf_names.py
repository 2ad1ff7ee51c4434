"""Which tensors of a Hugging Face folder make each tensor of a GGUF file.

The inverse of naming.py, with what published folders call things: experts one by one, Mixtral's
`block_sparse_moe`, FP8 matrices with `weight_scale_inv` beside them. No torch.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from ktransformers.checkpoint.hf_metadata import Config
from ktransformers.checkpoint.naming import LAYER_TENSORS, TOP_TENSORS
from ktransformers.checkpoint.packed import PackedTensor
from ktransformers.checkpoint.safetensors import SafetensorsFolder
from ktransformers.errors import UserError

FLOATS = ("f32", "f16", "bf16", "fp8", "f64")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|\.weight_scale_inv$")


@dataclass(frozen=True)
class Part:
    """A matrix of a GGUF tensor (an expert, or the whole): rows first..first + rows of `stored`,
    or of its matrix `index` where it is stacked."""

    stored: str
    rows: int
    cols: int
    first: int = 0
    index: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A GGUF tensor: its shape, the matrices it is made of, and heads whose rows become pairs."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    pair_heads: int = 0
    values: np.ndarray | None = None  # computed, not stored


def recipes(folder: SafetensorsFolder, config: Config) -> tuple[dict[str, Recipe], list[str]]:
    """(GGUF name -> recipe in the order of a file, tensors of layers that only draft tokens).

    Raises: UserError naming a tensor that is missing, unknown, or of the wrong shape.
    """
    made: dict[str, Recipe] = {}
    drafts: list[str] = []
    layers, experts = config.integer("num_hidden_layers", 1), config.experts
    single: dict[tuple[int, str], dict[int, str]] = {}
    tied = config.truth("tie_word_embeddings", False)
    is_llama = config.architecture == "llama"
    for stored in folder.tensors:
        if _IGNORED.search(stored) or (tied and stored == "lm_head.weight"):
            continue
        name = stored.replace("block_sparse_moe", "mlp")
        name = re.sub(r"(experts\.\d+)\.(w[123])\.", lambda m: f"{m[1]}.{_MIXTRAL[m[2]]}.", name)
        match = _LAYER.fullmatch(name)
        if match and int(match[1]) >= layers:
            drafts.append(stored)
            continue
        if name in TOP_TENSORS:
            made[TOP_TENSORS[name]] = _whole(folder, stored, TOP_TENSORS[name])
            continue
        if match is None:
            raise _unknown(folder, stored)
        layer, rest = int(match[1]), match[2]
        if expert := _EXPERT.fullmatch(rest):
            single.setdefault((layer, expert[2]), {})[int(expert[1])] = stored
        elif rest == "mlp.experts.gate_up_proj":
            made |= _stacked_halves(folder, stored, layer)
        elif rest in LAYER_TENSORS and not (is_llama and _is_empty_bias(folder, stored)):
            name = f"blk.{layer}.{LAYER_TENSORS[rest]}"
            if rest == "post_attention_layernorm.weight" and config.architecture == "glm4moe":
                name = f"blk.{layer}.post_attention_norm.weight"
            made[name] = _whole(folder, stored, name, _pair_heads(config, rest))
        elif not _is_empty_bias(folder, stored):
            raise _unknown(folder, stored)
    for (layer, part), stored_experts in single.items():
        made |= _stack(folder, layer, part, stored_experts, experts)
    if config.rope()["rope_type"] == "llama3":
        made["rope_freqs.weight"] = _llama3_divisors(config)
    return dict(sorted(made.items(), key=lambda item: _order(item[0]))), drafts


def _order(name: str) -> tuple:
    """Embedding, then the layers, then norm and head, as converters write them."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (1, int(match[1]), name) if match else (0 if name.startswith("token") else 2, 0, name)


def _unknown(folder: SafetensorsFolder, stored: str) -> UserError:
    return UserError(
        f"{folder.paths[folder.tensors[stored].file]}: tensor {stored}: nothing is known of it; "
        "left out, answers would be wrong"
    )


def _is_empty_bias(folder: SafetensorsFolder, stored: str) -> bool:
    """Whether it is the bias of zeros that GPTQ's writers gave modules which have none."""
    module, _, ending = stored.rpartition(".")
    if ending != "bias" or not isinstance(folder.tensors.get(f"{module}.weight"), PackedTensor):
        return False
    return not folder.bytes_of(stored).any()


def _stored(folder: SafetensorsFolder, stored: str):
    tensor = folder.tensors[stored]
    if tensor.dtype not in FLOATS and not isinstance(tensor, PackedTensor):
        raise UserError(
            f"{folder.paths[tensor.file]}: tensor {stored} has type {tensor.dtype}; "
            "f32, f16, bf16 and fp8 (E4M3 with weight_scale_inv) can be read"
        )
    return tensor


def _whole(folder: SafetensorsFolder, stored: str, name: str, heads: int = 0) -> Recipe:
    shape = _stored(folder, stored).shape
    if len(shape) == 3:  # stacked: one matrix per expert
        parts = tuple(Part(stored, shape[1], shape[2], index=i) for i in range(shape[0]))
        return Recipe(name, shape, parts)
    # A bias that goes with paired rows is paired itself: one value per row.
    rows = shape[0] if len(shape) == 2 or heads else 1
    part = Part(stored, rows, math.prod(shape) // rows)
    # The shared expert's gate is one row; GGUF keeps it as a vector.
    flat = (shape[-1],) if name.endswith("ffn_gate_inp_shexp.weight") else shape
    return Recipe(name, flat, (part,), heads)


def _stacked_halves(folder: SafetensorsFolder, stored: str, layer: int) -> dict[str, Recipe]:
    experts, rows, cols = _stored(folder, stored).shape
    made = {}
    for half, part in enumerate(("gate", "up")):
        name = f"blk.{layer}.ffn_{part}_exps.weight"
        cut = tuple(
            Part(stored, rows // 2, cols, half * (rows // 2), index) for index in range(experts)
        )
        made[name] = Recipe(name, (experts, rows // 2, cols), cut)
    return made


def _stack(
    folder: SafetensorsFolder, layer: int, part: str, stored: dict[int, str], experts: int
) -> dict[str, Recipe]:
    name = f"blk.{layer}.ffn_{part}_exps.weight"
    missing = sorted(set(range(experts)) - stored.keys())
    if missing or len(stored) != experts:
        raise UserError(
            f"{folder.folder}: layer {layer} has {len(stored)} of {experts} experts"
            + (f", {part}_proj of expert {missing[0]} is missing" if missing else "")
        )
    shapes = {_stored(folder, one).shape for one in stored.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
        raise UserError(f"{folder.folder}: layer {layer}: experts of several shapes")
    parts = tuple(Part(stored[index], *shape) for index in range(experts))
    return {name: Recipe(name, (experts, *shape), parts)}


def _pair_heads(config: Config, rest: str) -> int:
    """Heads whose rows architecture `llama` stores in rotary pairs."""
    if config.architecture != "llama":
        return 0
    heads = config.integer("num_attention_heads", 1)
    if rest.startswith("self_attn.q_proj."):
        return heads
    if rest.startswith("self_attn.k_proj."):
        return config.integer("num_key_value_heads", 1, heads)
    return 0


def _llama3_divisors(config: Config) -> Recipe:
    """What llama-3's scaling divides each frequency by, as converters store it.

    Long waves are slowed by `factor`, short ones not at all, those between in proportion.
    """
    rope, width = config.rope(), config.head_dim
    base, factor = float(rope["rope_theta"]), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    wave = 2 * math.pi * base ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = (original / wave - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    values = np.where(wave < original / high, 1.0, np.where(wave > original / low, factor, between))
    return Recipe("rope_freqs.weight", values.shape, (), values=values.astype(np.float32))
