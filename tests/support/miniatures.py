"""Miniature GGUF files of every family: random weights, and metadata as llama.cpp writes it.

    path = write(miniature("deepseek_v3", types="Q4_0"), tmp_path / "v3.gguf")

The weights are drawn so that the model behaves like a trained one where it matters to a
comparison: next-token entropy of 2-4 nats, router logits a few units apart, attention scores of
order one, a residual stream so small (0.03) that the norms' epsilon is felt.

A description is kept in memory until it is written, so that a test can plant a fault in it first.
"""

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from tests.support import vocabulary
from tests.support.blocks import decode, encode, fitting
from tests.support.families import Family, families

RESIDUAL = 0.03  # rms of the embedding and of what a layer adds to the stream
TIED_GAIN = 8.0  # a tied head would only repeat the input, were the embedding not drowned
LOGIT_STD = 2.4  # entropy is about ln(vocabulary) - LOGIT_STD**2 / 2 nats
ROUTER_STD = 1.6


@dataclass
class Tensor:
    """blocks: [..., row_bytes] uint8, the bytes of the file."""

    kind: Type
    blocks: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return decode(self.blocks, self.kind)


@dataclass
class Miniature:
    family: Family
    metadata: dict = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """Full name of an architecture's key: "rope.freq_base" -> "llama.rope.freq_base"."""
        return f"{self.family.architecture}.{name}"


def architecture_metadata(family: Family) -> dict:
    """The keys under `<architecture>.` in the order of llama.cpp's converters."""
    config = family.config
    mla = "kv_lora_rank" in config
    rope = config["rope_parameters"]
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": 1 if family.split_kv_b else config["num_key_value_heads"],
        "rope.freq_base": rope["rope_theta"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    if family.architecture in ("llama", "deepseek2"):
        keys["vocab_size"] = config["vocab_size"]
    if rope["rope_type"] in ("linear", "yarn"):
        keys["rope.scaling.type"] = rope["rope_type"]
        keys["rope.scaling.factor"] = rope["factor"]
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        keys["rope.scaling.yarn_beta_fast"] = rope["beta_fast"]
        keys["rope.scaling.yarn_beta_slow"] = rope["beta_slow"]
    if "head_dim" in config:
        keys["attention.key_length"] = keys["attention.value_length"] = config["head_dim"]
    if family.architecture == "glm4moe":
        keys |= {
            "rope.dimension_count": int(
                head_dim(config) * config["rope_parameters"]["partial_rotary_factor"]
            ),
            "expert_count": config["n_routed_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_shared_count": config["n_shared_experts"],
            "leading_dense_block_count": config["first_k_dense_replace"],
            "expert_gating_func": 2,
            "expert_weights_scale": config["routed_scaling_factor"],
            "expert_weights_norm": config["norm_topk_prob"],
        }
    if family.architecture == "llama":
        keys["rope.dimension_count"] = head_dim(config)
    experts = config.get("num_local_experts", config.get("num_experts"))
    if experts is not None:
        keys["expert_count"] = experts
        keys["expert_used_count"] = config["num_experts_per_tok"]
    if "moe_intermediate_size" in config:
        keys["expert_feed_forward_length"] = config["moe_intermediate_size"]
    if "shared_expert_intermediate_size" in config:
        keys["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    if mla:
        keys |= deepseek_metadata(family)
    return keys


def deepseek_metadata(family: Family) -> dict:
    """deepseek2 has two generations: kv_b whole, and split with the sizes of the absorbed form."""
    config = family.config
    nope, rope, v = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    latent = config["kv_lora_rank"]
    sigmoid = family.model == "DeepseekV3"
    keys = {
        "leading_dense_block_count": config["first_k_dense_replace"],
        "attention.kv_lora_rank": latent,
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "expert_gating_func": 2 if sigmoid else 1,
        "expert_weights_scale": config["routed_scaling_factor"],
        "rope.dimension_count": rope,
    }
    if "mscale_all_dim" in config["rope_parameters"]:
        mscale = config["rope_parameters"]["mscale_all_dim"]
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * mscale
    if config["norm_topk_prob"]:
        keys["expert_weights_norm"] = True
    if config["q_lora_rank"] is not None:
        keys["attention.q_lora_rank"] = config["q_lora_rank"]
    if family.split_kv_b:
        keys |= {
            "attention.key_length": latent + rope,
            "attention.value_length": latent,
            "attention.key_length_mla": nope + rope,
            "attention.value_length_mla": v,
        }
    else:
        keys |= {"attention.key_length": nope + rope, "attention.value_length": v}
    return keys


def head_dim(config: dict) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def shapes(family: Family) -> dict[str, tuple[tuple[int, ...], float]]:
    """{tensor: (shape, standard deviation)}; a deviation of 0 means a norm, drawn around 1.

    Shapes are torch's: a linear is (out, in), experts are (experts, out, in).
    """
    config = family.config
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    table: dict = {"token_embd.weight": ((vocab, hidden), RESIDUAL)}
    for layer in range(config["num_hidden_layers"]):
        parts = {"attn_norm.weight": ((hidden,), 0.0), "ffn_norm.weight": ((hidden,), 0.0)}
        parts |= mla_shapes(family) if "kv_lora_rank" in config else gqa_shapes(family)
        parts |= ffn_shapes(family, layer)
        if family.architecture == "glm4moe":
            parts["post_attention_norm.weight"] = parts.pop("ffn_norm.weight")
        table |= {f"blk.{layer}.{name}": value for name, value in parts.items()}
    table["output_norm.weight"] = ((hidden,), 0.0)
    if not config["tie_word_embeddings"]:
        table["output.weight"] = ((vocab, hidden), LOGIT_STD / math.sqrt(hidden))
    return table


def linear(out: int, columns: int, gain: float = 1.0) -> tuple:
    """A linear that maps inputs of rms 1 to outputs of rms `gain`."""
    return (out, columns), gain / math.sqrt(columns)


def gqa_shapes(family: Family) -> dict:
    config = family.config
    hidden, width = config["hidden_size"], head_dim(config)
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    parts = {
        "attn_q.weight": linear(q, hidden, 1.3),
        "attn_k.weight": linear(kv, hidden, 1.3),
        "attn_v.weight": linear(kv, hidden),
        "attn_output.weight": linear(hidden, q, 2 * RESIDUAL),
    }
    if family.architecture.startswith(("qwen2", "glm4moe")):
        parts |= {"attn_q.bias": ((q,), 0.5), "attn_k.bias": ((kv,), 0.5)}
        parts["attn_v.bias"] = ((kv,), 0.3)
    if family.architecture.startswith(("qwen3", "glm4moe")):
        parts |= {"attn_q_norm.weight": ((width,), 0.0), "attn_k_norm.weight": ((width,), 0.0)}
    return parts


def mla_shapes(family: Family) -> dict:
    config = family.config
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, v = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    latent, q_rank = config["kv_lora_rank"], config["q_lora_rank"]
    parts = {
        "attn_kv_a_mqa.weight": linear(latent + rope, hidden, 1.2),
        "attn_kv_a_norm.weight": ((latent,), 0.0),
        "attn_output.weight": linear(hidden, heads * v, 2 * RESIDUAL),
    }
    if q_rank is None:
        parts["attn_q.weight"] = linear(heads * (nope + rope), hidden, 1.2)
    else:
        parts["attn_q_a.weight"] = linear(q_rank, hidden)
        parts["attn_q_a_norm.weight"] = ((q_rank,), 0.0)
        parts["attn_q_b.weight"] = linear(heads * (nope + rope), q_rank, 1.2)
    if family.split_kv_b:
        parts["attn_k_b.weight"] = ((heads, latent, nope), 1.2 / math.sqrt(latent))
        parts["attn_v_b.weight"] = ((heads, v, latent), 1.2 / math.sqrt(latent))
    else:
        parts["attn_kv_b.weight"] = linear(heads * (nope + v), latent, 1.2)
    return parts


def ffn_shapes(family: Family, layer: int) -> dict:
    config = family.config
    hidden = config["hidden_size"]
    experts = next(
        (
            config[k]
            for k in ("num_local_experts", "num_experts", "n_routed_experts")
            if k in config
        ),
        0,
    )
    if not experts or layer < config.get("first_k_dense_replace", 0):
        return swiglu("", hidden, config["intermediate_size"])
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    parts = {"ffn_gate_inp.weight": linear(experts, hidden, ROUTER_STD)}
    for name, ((out, columns), std) in swiglu("_exps", hidden, width).items():
        parts[name] = ((experts, out, columns), std)
    if "n_shared_experts" in config:
        parts |= swiglu("_shexp", hidden, width * config["n_shared_experts"])
    if "shared_expert_intermediate_size" in config:
        parts |= swiglu("_shexp", hidden, config["shared_expert_intermediate_size"])
        parts["ffn_gate_inp_shexp.weight"] = ((hidden,), 1.0 / math.sqrt(hidden))
    if family.model in ("DeepseekV3", "Glm4Moe"):
        parts["exp_probs_b.bias"] = ((experts,), 0.15)
    return parts


def swiglu(suffix: str, hidden: int, width: int) -> dict:
    """SwiGLU of inputs of rms 1 has an rms near 0.6 before `down`."""
    return {
        f"ffn_gate{suffix}.weight": linear(width, hidden),
        f"ffn_up{suffix}.weight": linear(width, hidden),
        f"ffn_down{suffix}.weight": linear(hidden, width, 2 * RESIDUAL),
    }


def draw(name: str, shape: tuple, std: float, seed: int) -> np.ndarray:
    """Each tensor has a random stream of its own, so that one more tensor changes no other."""
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    noise = rng.standard_normal(shape, np.float32)
    if std == 0.0:
        return (1.0 + 0.2 * noise).astype(np.float32)
    return noise * np.float32(std)


def always_f32(name: str, shape: tuple) -> bool:
    """Converters never quantise vectors, nor the router."""
    return len(shape) == 1 or "ffn_gate_inp." in name


def rope_factors(rope: dict, width: int) -> np.ndarray:
    """llama-3 scaling as the divisors of the frequencies that converters store (rope_freqs)."""
    frequency = rope["rope_theta"] ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high, factor = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def miniature(
    name: str | Family, types: str | dict = "F32", seed: int = 0, wide: bool | None = None
) -> Miniature:
    """Describes a miniature: one of families() by name, or a family made up by a test.

    types: a GGUF type for all matrices, or {part of a tensor's name: type} with "" for the rest;
    where rows are not whole blocks of it, the type falls back as a quantizer's does.
    wide: None chooses rows of 256 when a type needs them.
    """
    types = {"": types} if isinstance(types, str) else types
    kinds = {part: Type[kind] for part, kind in types.items()}
    if wide is None:
        wide = any(gguf.GGML_QUANT_SIZES[kind][0] > 32 for kind in kinds.values())
    family = families(wide)[name] if isinstance(name, str) else name
    result = Miniature(family)
    pre = {"llama": "llama-bpe", "deepseek2": "deepseek-v3", "glm4moe": "glm4"}.get(
        family.architecture, "qwen2"
    )
    result.metadata = {"general.name": f"miniature {family.name}", "general.file_type": 0}
    result.metadata |= {result.key(k): v for k, v in architecture_metadata(family).items()}
    result.metadata |= vocabulary.metadata(pre)

    gains = {}
    if family.config["tie_word_embeddings"]:
        head = LOGIT_STD / (RESIDUAL * math.sqrt(family.config["hidden_size"]))
        gains = {"output_norm": head, "attn_output": TIED_GAIN, "ffn_down": TIED_GAIN}
    for tensor, (shape, std) in shapes(family).items():
        gain = next((gains[part] for part in gains if part in tensor), 1.0)
        values = draw(tensor, shape, std, seed) * np.float32(gain)
        chosen = next(
            kinds[part] for part in sorted(kinds, key=len, reverse=True) if part in tensor
        )
        kind = Type.F32 if always_f32(tensor, shape) else fitting(chosen, shape[-1])
        rng = np.random.default_rng((seed, zlib.crc32(tensor.encode()), 1))
        result.tensors[tensor] = Tensor(kind, encode(values, kind, rng))
    rope = family.config["rope_parameters"]
    if rope["rope_type"] == "llama3":
        factors = rope_factors(rope, head_dim(family.config))
        result.tensors["rope_freqs.weight"] = Tensor(Type.F32, factors.view(np.uint8))
    return result


def write(description: Miniature, path: Path) -> Path:
    """Writes the GGUF file. int -> uint32, float -> float32, bool, str, list."""
    writer = gguf.GGUFWriter(path, description.family.architecture)
    for key, value in description.metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in description.tensors.items():
        plain = {Type.F32: np.float32, Type.F16: np.float16}.get(tensor.kind)
        data = tensor.blocks if plain is None else tensor.blocks.view(plain)
        writer.add_tensor(name, data, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
