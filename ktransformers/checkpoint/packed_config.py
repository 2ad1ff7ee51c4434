"""What config.json says of weights in integer codes: GPTQ, AWQ, compressed-tensors. No torch.

Only what is needed to read them, and what would make them something else. Which modules are
quantised is not asked here: a module that is has its codes in the folder, one that is left out
(`ignore`, `modules_to_not_convert`, `dynamic`) a plain weight. So no pattern of a file is ever run.
"""

from dataclasses import dataclass
from typing import Any

from ktransformers.checkpoint.hf_metadata import Config

FP8_BLOCK = 128
BITS = (4, 8)


@dataclass(frozen=True)
class Scheme:
    """layout: "rows" (compressed-tensors), "gptq", "awq". bits: None where modules differ, and
    their shapes say. group: columns that share a scale, 0: all of a row, None: the shapes say.
    zero_offset: added to stored zero points. is_ordered: columns may be in any group (g_idx)."""

    layout: str
    bits: int | None
    group: int | None
    is_symmetric: bool
    zero_offset: int = 0
    is_ordered: bool = False


class _Fields:
    """A mapping of config.json, its values checked as they are taken."""

    def __init__(self, config: Config, where: str, values: Any):
        self.config, self.where = config, where
        if not isinstance(values, dict):
            raise config.fail(where, f"{values!r:.60} is no mapping")
        self.values = values

    def fail(self, field: str, what: str) -> Exception:
        return self.config.fail(f"{self.where}.{field}", what)

    def first(self, *names: str) -> tuple[str, Any]:
        """(name, value) of the first that is there and not null; else (first name, None)."""
        found = ((n, self.values[n]) for n in names if self.values.get(n) is not None)
        return next(found, (names[0], None))

    def truth(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, f"{value!r:.60} is neither true nor false")
        return value

    def word(self, names: tuple[str, ...], default: str, known: tuple[str, ...]) -> str:
        name, value = self.first(*names)
        word = default if value is None else value
        word = word.lower() if isinstance(word, str) else word
        if word not in known:
            raise self.fail(name, f"{value!r:.60} cannot be read; {' and '.join(known)} can")
        return word

    def bits(self, *names: str, known: tuple[int, ...] = BITS) -> int:
        name, value = self.first(*names)
        if type(value) is not int or value not in known:
            can = " and ".join(map(str, known))
            raise self.fail(name, f"{value!r:.60} cannot be read; codes of {can} bits can")
        return value

    def group(self, *names: str) -> int:
        name, value = self.first(*names)
        if type(value) is not int or (value != -1 and value < 1) or value >= 1 << 31:
            raise self.fail(name, f"{value!r:.60} is no number of columns, nor -1 for all")
        return 0 if value == -1 else value


def packed_scheme(config: Config) -> Scheme | None:
    """How the folder's quantised weights are stored; None: floats, or fp8 in square blocks.

    Raises: UserError naming what cannot be read.
    """
    key = "quantization_config"
    if config.values.get(key) is None:
        key = "compression_config"
    given = config.values.get(key)
    if given is None:
        return None
    fields = _Fields(config, key, given)
    method = given.get("quant_method")
    if method == "gptq":
        return _gptq(fields)
    if method == "awq":
        return _awq(fields)
    if method == "compressed-tensors":
        return _compressed(fields)
    block = given.get("weight_block_size")
    if method == "fp8" and block in ([FP8_BLOCK, FP8_BLOCK], (FP8_BLOCK, FP8_BLOCK)):
        return None
    what = f"{method!r:.40}" + (f" with blocks of {block!r:.40}" if method == "fp8" else "")
    raise config.fail(
        key,
        f"{what} cannot be read; unquantised folders, fp8 with blocks of [{FP8_BLOCK}, "
        f"{FP8_BLOCK}], gptq, awq and compressed-tensors can, or a GGUF of the model",
    )


def _gptq(fields: _Fields) -> Scheme:
    for name in ("is_marlin_format", "is_bitblas_format"):
        if fields.truth(name, False):
            raise fields.fail(name, "true cannot be read; format gptq and gptq_v2 can")
    kind = fields.word(("checkpoint_format", "format"), "gptq", ("gptq", "gptq_v2"))
    fields.word(("pack_dtype",), "int32", ("int32",))
    bits, group = fields.bits("bits"), fields.group("group_size")
    differs = bool(fields.values.get("dynamic"))  # single modules have other bits or groups
    return Scheme(
        "gptq",
        None if differs else bits,
        None if differs else group,
        fields.truth("sym", True) and not differs,
        1 if kind == "gptq" else 0,
        fields.truth("desc_act", False),
    )


def _awq(fields: _Fields) -> Scheme:
    fields.word(("version",), "gemm", ("gemm",))
    bits = fields.bits("bits", "w_bit", known=(4,))
    fields.truth("zero_point", True)
    return Scheme("awq", bits, fields.group("group_size", "q_group_size"), False)


def _compressed(fields: _Fields) -> Scheme:
    only = ("pack-quantized",)
    fields.word(("format",), "none", only)
    if transform := fields.values.get("transform_config"):
        raise fields.fail("transform_config", f"{transform!r:.60} cannot be read")
    sparsity = fields.values.get("sparsity_config")
    if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format") != "dense"):
        raise fields.fail("sparsity_config", f"{sparsity!r:.60} cannot be read")
    groups = fields.values.get("config_groups")
    if not isinstance(groups, dict) or not 1 <= len(groups) <= 1000:
        raise fields.fail("config_groups", "names no group of modules")
    found = [_compressed_group(fields, str(name), group, only) for name, group in groups.items()]
    if len(set(found)) == 1:
        return found[0]
    ordered = any(one.is_ordered for one in found)
    return Scheme("rows", None, None, False, is_ordered=ordered)


def _compressed_group(fields: _Fields, name: str, values: Any, only: tuple[str, ...]) -> Scheme:
    group = _Fields(fields.config, f"{fields.where}.config_groups.{name:.40}", values)
    group.word(("format",), only[0], only)
    weights = _Fields(fields.config, f"{group.where}.weights", values.get("weights"))
    weights.word(("type",), "int", ("int",))
    bits = weights.bits("num_bits")
    strategy = weights.word(("strategy",), "group", ("group", "channel"))
    size = weights.group("group_size") if strategy == "group" else 0
    order = weights.values.get("actorder")
    ordered = order is True or (isinstance(order, str) and order.lower() in ("group", "dynamic"))
    return Scheme("rows", bits, size, weights.truth("symmetric", True), 0, ordered)
