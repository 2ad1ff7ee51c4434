"""Folders in GPTQ, AWQ and compressed-tensors, written from a folder of floats.

The grids are drawn here and packed by what others wrote (compressed-tensors' own functions) or from
the formats' descriptions, a value at a time in torch. Nothing of ktransformers is imported. Beside
each folder stands one with the same values as floats, which transformers reads.
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the value that lies in each nibble of a word


@dataclass(frozen=True)
class Grid:
    """How matrices are quantised and stored. method: gptq, gptq_v2, awq, compressed-tensors.
    group: columns that share a scale, 0: all. is_ordered: columns are dealt to groups at random.
    scales: their type."""

    method: str
    bits: int = 4
    group: int = 64
    symmetric: bool = True
    is_ordered: bool = False
    scales: torch.dtype = torch.float16

    def but(self, **changes) -> "Grid":
        return replace(self, **changes)


@dataclass
class Codes:
    """u [n, k] uint8, zero [n, groups] int32, scale [n, groups], group_of [k]."""

    u: torch.Tensor
    zero: torch.Tensor
    scale: torch.Tensor
    group_of: torch.Tensor

    @property
    def values(self) -> torch.Tensor:
        """[n, k] float32: scale * (code - zero)."""
        zero, scale = self.zero[:, self.group_of], self.scale.float()[:, self.group_of]
        return scale * (self.u.int() - zero).float()


def codes_of(weight: torch.Tensor, grid: Grid, seed: int) -> Codes:
    """The nearest codes of a matrix [n, k]."""
    n, k = weight.shape
    groups = k // (grid.group or k)
    group_of = torch.arange(k) // (k // groups)
    if grid.is_ordered:
        group_of = group_of[torch.randperm(k, generator=torch.Generator().manual_seed(seed))]
    order = torch.argsort(group_of, stable=True)
    x = weight.float()[:, order].reshape(n, groups, -1)
    top, half = 2**grid.bits - 1, 2 ** (grid.bits - 1)
    if grid.symmetric:
        scale = x.abs().amax(2) / (half - 1)
        zero = torch.full_like(scale, half, dtype=torch.int32)
    else:
        low, high = x.amin(2).clamp(max=0), x.amax(2).clamp(min=0)
        scale = (high - low) / top
        # 1: what GPTQ's first format, which stores it less one, can hold
        zero = (-low / scale).round().int().clamp(1, top)
    scale = scale.to(grid.scales)
    wide = scale.float()[:, group_of]
    u = (weight.float() / wide).round() + zero[:, group_of]
    return Codes(u.clamp(0, top).to(torch.uint8), zero, scale, group_of)


def pack_columns(values: torch.Tensor, bits: int, order=None) -> torch.Tensor:
    """[a, b] -> int32 [a, b * bits / 32]: `order` says which value lies in each field."""
    per = 32 // bits
    fields = values.to(torch.int64).reshape(values.shape[0], -1, per)
    word = torch.zeros(fields.shape[:2], dtype=torch.int64)
    for place, value in enumerate(order or range(per)):
        word |= fields[:, :, value] << (bits * place)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def stored(module: str, codes: Codes, grid: Grid) -> dict[str, torch.Tensor]:
    """The tensors a module has in a folder of that method."""
    if grid.method == "compressed-tensors":
        half = 2 ** (grid.bits - 1)
        signed = (codes.u.int() - half).to(torch.int8)
        out = {
            "weight_packed": pack_to_int32(signed, grid.bits),
            "weight_scale": codes.scale,
            "weight_shape": torch.tensor(codes.u.shape),
        }
        if not grid.symmetric:
            zero = (codes.zero - half).to(torch.int8)
            out["weight_zero_point"] = pack_to_int32(zero, grid.bits, packed_dim=0)
        if grid.is_ordered:
            out["weight_g_idx"] = codes.group_of.int()
    elif grid.method == "awq":
        out = {
            "qweight": pack_columns(codes.u.T, 4, AWQ_ORDER),
            "qzeros": pack_columns(codes.zero.T, 4, AWQ_ORDER),
            "scales": codes.scale.T,
        }
    else:
        less = 1 if grid.method == "gptq" else 0
        out = {
            "qweight": pack_columns(codes.u, grid.bits).T,
            "qzeros": pack_columns(codes.zero.T - less, grid.bits),
            "scales": codes.scale.T,
            "g_idx": codes.group_of.int(),
        }
    return {f"{module}.{name}": value.contiguous() for name, value in out.items()}


def config_of(grid: Grid) -> dict:
    """The quantization_config that the method's own tools write."""
    if grid.method == "awq":
        return {
            "quant_method": "awq", "bits": 4, "group_size": grid.group or -1, "zero_point": True,
            "version": "gemm", "modules_to_not_convert": ["gate"],
        }  # fmt: skip
    if grid.method.startswith("gptq"):
        return {
            "quant_method": "gptq", "bits": grid.bits, "group_size": grid.group or -1,
            "sym": grid.symmetric, "desc_act": grid.is_ordered, "checkpoint_format": grid.method,
            "pack_dtype": "int32", "lm_head": False, "damp_percent": 0.01, "true_sequential": True,
        }  # fmt: skip
    weights = {
        "actorder": "group" if grid.is_ordered else None, "block_structure": None,
        "dynamic": False, "group_size": grid.group or None, "num_bits": grid.bits,
        "observer": "minmax", "observer_kwargs": {}, "strategy": "group" if grid.group else
        "channel", "symmetric": grid.symmetric, "type": "int",
    }  # fmt: skip
    group = {
        "targets": ["Linear"], "weights": weights, "input_activations": None,
        "output_activations": None,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "kv_cache_scheme": None,
        # Patterns that must not be run: the second would take for ever.
        "ignore": ["lm_head", "re:(a+)+$", "re:.*self_attn.*"], "config_groups": {"group_0": group},
    }  # fmt: skip


def write_folder(
    source: Path, target: Path, grid: Grid, which: str = r"_proj\.weight$"
) -> dict[str, Codes]:
    """`source` with matrices whose name `which` finds in `grid`, in `target`; and the same values
    as floats in target/values. Returns {tensor name: its codes}."""
    target.mkdir()
    (target / "values").mkdir()
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, target)
            shutil.copy(file, target / "values")
    state, packed, values, found = load_file(source / "model.safetensors"), {}, {}, {}
    for number, (name, value) in enumerate(state.items()):
        if value.ndim != 2 or not re.search(which, name):
            packed[name], values[name] = value, value.float()
            continue
        found[name] = codes_of(value, grid, number)
        packed |= stored(name.removesuffix(".weight"), found[name], grid)
        values[name] = found[name].values
    save_file(packed, target / "model.safetensors", {"format": "pt"})
    save_file(values, target / "values" / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization_config": config_of(grid)}
    (target / "config.json").write_text(json.dumps(config))
    return found
