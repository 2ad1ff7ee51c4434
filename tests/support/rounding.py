"""The rounding of activations in plain NumPy, written from the descriptions at the head of
csrc/cpu/kernels/activations_inl.h and digits_inl.h: what a row of floats becomes before it meets
quantised weights.

The scales are float32 and found by float32 arithmetic, as described there; what they multiply is
exact here, so that a product with it differs from the core's only by the order of float sums.
"""

import numpy as np

ONE = np.float32(1.0)
TINIEST = np.float32(1e-30)  # what is less than that is zero beside anything
EXACT_TOP = 32512  # the top step of 256 * hi + lo with hi in -127..127


def exact(x: np.ndarray) -> np.ndarray:
    """Two int8 halves with one float scale per 32 values. x: [m, k] float32 -> float64 [m, k]."""
    blocks = _blocks(x, 32)
    scale = np.abs(blocks).max(axis=-1) * np.float32(1.0 / EXACT_TOP)
    q = _quantize(blocks, scale, -EXACT_TOP, EXACT_TOP)
    return _joined(q * scale[..., None].astype(np.float64), x)


def digit(x: np.ndarray, zero_shift: int = 0) -> np.ndarray:
    """One asymmetric int8 digit, and one float per 256 values. x: [m, k] float32 -> float64 [m, k].

    zero_shift plants a fault: added to every zero point but for what it makes of the digits' range.
    """
    out = []
    for start in range(0, x.shape[1], 256):
        part = x[:, start : start + 256].copy()
        rows, largest = np.arange(len(part)), np.abs(part).argmax(axis=1)  # the first of equals
        outliers = part[rows, largest]
        part[rows, largest] = 0
        blocks = _blocks(part, 32)
        high = np.maximum(blocks.max(axis=-1), np.float32(0.0))
        low = np.minimum(blocks.min(axis=-1), np.float32(0.0))
        base = _needed_scale(low, high).max(axis=-1)
        dead = (base < TINIEST) | (base < np.abs(outliers) * TINIEST)
        inverse = np.where(dead, np.float32(0.0), ONE / np.where(dead, ONE, base))[:, None]
        halvings, going = np.zeros(low.shape, np.int64), np.ones(low.shape, bool)
        for e in range(1, 7):  # halved while the block still fits
            going &= _fits(low * inverse * np.float32(2**e), high * inverse * np.float32(2**e))
            halvings += going
        factor = np.exp2(halvings).astype(np.float32)
        zero = _coarse_zero(low * inverse * factor, high * inverse * factor).astype(np.int64)
        q = np.rint(blocks * (inverse * factor)[..., None]).astype(np.int64)
        q = np.clip(q, (zero - 128)[..., None], (zero + 127)[..., None])
        scale = np.where(dead, 0.0, base.astype(np.float64))[:, None] / factor
        digits = _joined((q + zero_shift) * scale[..., None], part)
        digits[rows, largest] += outliers
        out.append(digits)
    return np.concatenate(out, axis=1)


def _blocks(x: np.ndarray, size: int) -> np.ndarray:
    m, k = x.shape
    padded = np.zeros((m, -(-k // size) * size), np.float32)
    padded[:, :k] = x
    return padded.reshape(m, -1, size)


def _joined(blocks: np.ndarray, like: np.ndarray) -> np.ndarray:
    return blocks.reshape(len(like), -1)[:, : like.shape[1]]


def _quantize(blocks, scale, low, high):
    """Nearest integers, ties to even, clamped; a scale below 1e-30 gives zeros."""
    usable = scale >= np.float32(1e-30)
    with np.errstate(divide="ignore"):
        inverse = np.where(usable, ONE / np.where(usable, scale, ONE), np.float32(0.0))
    q = np.rint(blocks * inverse[..., None].astype(np.float32)).astype(np.int64)
    low, high = np.broadcast_to(low, scale.shape), np.broadcast_to(high, scale.shape)
    return np.clip(q, low[..., None], high[..., None]) * usable[..., None]


def _coarse_zero(low, high):
    """The multiple of 16 nearest to the middle of a range in steps, digits lying in -128..127."""
    centre = (low + high) * np.float32(0.5) + np.float32(0.5)
    return 16 * np.rint(centre * np.float32(1 / 16))


def _fits(low, high):
    zero = _coarse_zero(low, high).astype(np.float32)
    return (high - zero <= np.float32(127.5)) & (zero - low <= np.float32(128.5))


def _needed_scale(low, high):
    """The first of range / 255, / 251, / 247, / 243 at which the range fits, else range / 239."""
    span = high - low
    most = np.full(span.shape, np.float32(239.0))
    for steps in (243, 247, 251, 255):
        inverse = np.float32(steps) / np.maximum(span, TINIEST)
        most = np.where(_fits(low * inverse, high * inverse), np.float32(steps), most)
    return span / most
