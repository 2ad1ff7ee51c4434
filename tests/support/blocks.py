"""Random weights in every GGUF type: encoded where the gguf package can encode, made up elsewhere.

The gguf package has no encoder for K- and I-quants. For those, every payload byte is random, which
is a valid block of some weights, and only the block scales are chosen, so that the values have the
standard deviation asked for. What the values are, the package's own decoder tells.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

# Types without an encoder: offsets of their binary16 scales, and the ratio of each to the first,
# chosen so that scale * level - minimum has a mean near zero.
SCALES = {
    Type.Q2_K: ((80, 1.0), (82, 1.5)),
    Type.Q3_K: ((108, 1.0),),
    Type.Q4_K: ((0, 1.0), (2, 7.5)),
    Type.Q5_K: ((0, 1.0), (2, 15.5)),
    Type.Q6_K: ((208, 1.0),),
    Type.IQ1_S: ((0, 1.0),),
    Type.IQ2_XXS: ((0, 1.0),),
    Type.IQ2_XS: ((0, 1.0),),
    Type.IQ2_S: ((0, 1.0),),
    Type.IQ3_XXS: ((0, 1.0),),
    Type.IQ3_S: ((0, 1.0),),
    Type.IQ4_NL: ((0, 1.0),),
    Type.IQ4_XS: ((0, 1.0),),
}
ENCODED = (
    Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0,
    Type.TQ1_0, Type.TQ2_0, Type.MXFP4,
)  # fmt: skip
ALL_TYPES = (*ENCODED, *SCALES, Type.IQ1_M, Type.NVFP4)


def fitting(kind: Type, columns: int) -> Type:
    """`kind`, or the type a quantizer falls back to where rows are not whole blocks of `kind`."""
    for one in (kind, Type.Q8_0, Type.F16):
        if columns % gguf.GGML_QUANT_SIZES[one][0] == 0:
            return one
    raise AssertionError("F16 fits every row")


def encode(values: np.ndarray, kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Blocks of `kind` [..., row_bytes] uint8 for weights like `values` [..., columns].

    They stand for `values` rounded where there is an encoder, else for random values with the
    same standard deviation: use `decode` on the result either way.
    """
    if kind in ENCODED:
        blocks = gguf.quantize(np.ascontiguousarray(values, np.float32), kind)
        return blocks.view(np.uint8).reshape(*values.shape[:-1], -1)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (values.size // per_block, size), np.uint8)
    spread = rng.uniform(0.5, 1.5, len(blocks)).astype(np.float32)
    std = float(values.std())
    set_scales(blocks, kind, spread)
    set_scales(blocks, kind, spread * (std / float(decode(blocks, kind).std())))
    return blocks.reshape(*values.shape[:-1], -1)


def set_scales(blocks: np.ndarray, kind: Type, scale: np.ndarray) -> None:
    """Writes the scale of each block in place; blocks: [n, block_bytes], scale: [n]."""
    if kind in SCALES:
        for at, ratio in SCALES[kind]:
            half = (scale * ratio).astype("<f2")
            blocks[:, at : at + 2] = half[:, None].view(np.uint8)
    elif kind == Type.IQ1_M:  # four bits of the binary16 scale on top of each of four words
        half = scale.astype("<f2").view(np.uint16)
        words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
        for i in range(4):
            words[:, i] = (words[:, i] & 0x0FFF) | (((half >> (4 * i)) & 0xF) << 12)
        blocks[:, 48:56] = words.view(np.uint8)
    elif kind == Type.NVFP4:  # four unsigned E4M3 scales
        codes = gguf.quants.NVFP4.fp32_to_ue4m3(np.maximum(scale, 2**-9))
        blocks[:, :4] = codes[:, None]
    else:
        raise AssertionError(f"no scale known for {kind.name}")


def decode(blocks: np.ndarray, kind: Type) -> np.ndarray:
    """Blocks [..., row_bytes] uint8 -> float32 [..., columns], by the gguf package."""
    if kind in (Type.F32, Type.F16):
        plain = np.float32 if kind == Type.F32 else np.float16
        return np.ascontiguousarray(blocks).view(plain).astype(np.float32)
    return gguf.dequantize(np.ascontiguousarray(blocks), kind).astype(np.float32)
