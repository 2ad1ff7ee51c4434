"""Full-width synthetic models: the shapes and file types of real ones, as many layers as fit.

Weights are random blocks whose scales give each tensor the standard deviation a trained one has;
norms are one and routers have no bias, so that tokens spread evenly over the experts. Such files
say nothing about answers, and everything about bytes, operations and time. The type mix is that of
Q4_K_M: gate, up and most of attention Q4_K, down, values and head Q6_K; where rows are no multiple
of 256 the type falls back as llama.cpp's quantizer does.
"""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from ktransformers import _core
from tests.support import vocabulary
from tests.support.blocks import encode, fitting
from tests.support.families import Family
from tests.support.miniatures import always_f32, architecture_metadata, shapes

VERSION = 1  # of what is written; a file of another version is made again
POOL_BYTES = 24 << 20  # random blocks that a tensor's bytes are dealt from
ROUTER_STD = 1.6
UNUSED = 5  # token type in GGUF


def plain_rope(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


def common(hidden: int, intermediate: int, vocab: int, heads: int, kv_heads: int) -> dict:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_parameters": plain_rope(1e6),
        "bos_token_id": 0,
        "eos_token_id": vocabulary.EOS,
        "pad_token_id": None,
    }


def qwen3(layers: int) -> Family:
    """Qwen3-30B-A3B."""
    config = common(2048, 6144, 151936, 32, 4) | {
        "num_hidden_layers": layers, "head_dim": 128, "attention_bias": False,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    }  # fmt: skip
    return Family("qwen3-30b-a3b", "qwen3moe", "Qwen3Moe", config)


def deepseek_v3(layers: int) -> Family:
    """DeepSeek-V3 with one dense layer; the small vocabulary keeps lm_head in proportion."""
    config = common(7168, 18432, 8192, 128, 128) | {
        "num_hidden_layers": layers, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "moe_intermediate_size": 2048, "first_k_dense_replace": 1, "n_shared_experts": 1,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    }  # fmt: skip
    return Family("deepseek-v3", "deepseek2", "DeepseekV3", config, split_kv_b=True)


def deepseek_v2_lite(layers: int) -> Family:
    """DeepSeek-V2-Lite."""
    config = common(2048, 10944, 102400, 16, 16) | {
        "num_hidden_layers": layers, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "moe_intermediate_size": 1408, "first_k_dense_replace": 1, "n_shared_experts": 2,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
        "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    }  # fmt: skip
    return Family("deepseek-v2-lite", "deepseek2", "DeepseekV2", config, split_kv_b=True)


def mixtral(layers: int) -> Family:
    """Mixtral-8x7B."""
    config = common(4096, 14336, 32000, 32, 8) | {
        "num_hidden_layers": layers, "num_local_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    return Family("mixtral-8x7b", "llama", "Mixtral", config)


@dataclass(frozen=True)
class Width:
    """make: layers -> Family. least, most: layers; most is what results are recorded with."""

    make: Callable[[int], Family]
    least: int
    most: int


WIDTHS = {
    "qwen3": Width(qwen3, 1, 16),
    "v3": Width(deepseek_v3, 2, 2),
    "v2-lite": Width(deepseek_v2_lite, 2, 18),
    "mixtral": Width(mixtral, 1, 8),
}


@dataclass(frozen=True)
class TensorPlan:
    """shape in torch's order, std of the values (0: all ones, None: all zeros)."""

    name: str
    kind: Type
    shape: tuple[int, ...]
    std: float | None

    @property
    def nbytes(self) -> int:
        per_block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=np.int64)) // per_block * size


def kind_of(name: str, shape: tuple[int, ...]) -> Type:
    """The type Q4_K_M gives a tensor."""
    if always_f32(name, shape):
        return Type.F32
    in_six_bits = ("attn_v.", "ffn_down", "output.weight")
    wanted = Type.Q6_K if any(part in name for part in in_six_bits) else Type.Q4_K
    if "attn_output" in name:
        wanted = Type.Q4_K
    return fitting(wanted, shape[-1])


def tensors_of(family: Family) -> list[TensorPlan]:
    plans = []
    for name, (shape, std) in shapes(family).items():
        if "exp_probs_b" in name:
            std = None
        plans.append(TensorPlan(name, kind_of(name, shape), shape, std))
    return plans


def file_bytes(family: Family) -> int:
    return sum(plan.nbytes for plan in tensors_of(family))


def sized(width: str, memory: int, layers: int | None = None) -> Family | None:
    """The model with as many layers as a third of `memory` bytes holds; None where not even the
    least do. The rest of memory is for the repacked copy, the cache and the peers' copies."""
    spec = WIDTHS[width]
    for count in range(layers or spec.most, (layers or spec.least) - 1, -1):
        family = spec.make(count)
        if layers or file_bytes(family) <= memory // 3:
            return family
    return None


def cache_folder() -> Path:
    """Where models are kept between runs: KT_BENCH_MODELS, or the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("KT_BENCH_MODELS") or home / "ktransformers" / "bench")


def path_of(family: Family, folder: Path) -> Path:
    layers = family.config["num_hidden_layers"]
    return folder / f"{family.name}-{layers}layers-v{VERSION}.gguf"


def make(family: Family, folder: Path) -> Path:
    """The model's file, written unless it is there."""
    path = path_of(family, folder)
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    plans = tensors_of(family)
    writer = _core.GgufWriter(str(path))
    for key, (kind, value) in metadata(family).items():
        writer.add(key, kind, value)
    for plan in plans:
        writer.add_tensor(plan.name, plan.kind.name.lower(), plan.shape)
    pools: dict = {}
    for plan in plans:
        for piece in bytes_of(plan, pools):
            writer.write(piece)
    writer.finish()
    return path


def metadata(family: Family) -> dict[str, tuple[str, object]]:
    """{key: (GGUF type, value)}"""
    pre = {"llama": "llama-bpe", "deepseek2": "deepseek-v3"}.get(family.architecture, "qwen2")
    words = vocabulary.metadata(pre)
    missing = family.config["vocab_size"] - vocabulary.SIZE
    words["tokenizer.ggml.tokens"] += [f"<unused{i}>" for i in range(missing)]
    words["tokenizer.ggml.token_type"] += [UNUSED] * missing
    keys: dict = {"general.architecture": family.architecture}
    keys |= {"general.name": f"synthetic {family.name}", "general.file_type": 15}
    keys |= {f"{family.architecture}.{k}": v for k, v in architecture_metadata(family).items()}
    return {key: (value_type(value), value) for key, value in (keys | words).items()}


def value_type(value) -> str:
    if isinstance(value, list):
        return f"[{'string' if isinstance(value[0], str) else 'i32'}]"
    return {bool: "bool", int: "u32", float: "f32", str: "string"}[type(value)]


def bytes_of(plan: TensorPlan, pools: dict):
    """The tensor's bytes in pieces: blocks dealt from a pool, each piece from another place."""
    rng = np.random.default_rng(zlib.crc32(plan.name.encode()))
    if plan.kind == Type.F32:
        if plan.std is None or plan.std == 0.0:
            values = np.full(plan.shape, 0.0 if plan.std is None else 1.0, np.float32)
        else:
            values = rng.standard_normal(plan.shape, np.float32) * np.float32(plan.std)
        yield values
        return
    pool = pools.get((plan.kind, plan.std))
    if pool is None:
        pool = pools[plan.kind, plan.std] = random_blocks(plan.kind, plan.std, len(pools))
    left = plan.nbytes
    while left:
        start = int(rng.integers(len(pool) // 2)) * pool.shape[1]
        piece = pool.reshape(-1)[start : start + left]
        yield piece
        left -= len(piece)


def random_blocks(kind: Type, std: float, seed: int) -> np.ndarray:
    """[blocks, block bytes] uint8 whose values have the standard deviation."""
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    count = POOL_BYTES // size
    rng = np.random.default_rng(seed)
    # The test support's encoder scales by the deviation of what it is given: a sample is enough.
    parts = []
    for _ in range(0, count, 1 << 12):
        values = rng.standard_normal((1 << 12, per_block), np.float32) * np.float32(std)
        parts.append(encode(values, kind, rng).reshape(-1, size))
    return np.concatenate(parts)
