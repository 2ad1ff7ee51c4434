"""The default arithmetic written out in torch, as a second opinion on what rounding alone costs.

A transformers model keeps its exact weights; only the inputs of its linear layers are rounded, row
by row, as the CPU kernels round them (csrc/cpu/kernels/activations_inl.h, digits_inl.h):

exact, per 32 values:
    s = max|x| / 32512,  q = round(x / s),  x' = s * q

digit: per 256 values the largest |x|, first of equals, stays as it is and counts as 0 in the
rest; of the rest, per 32 values, s one float per 256 times 2^-e:
    low = min(x, 0), high = max(x, 0)
    z(s) = the multiple of 16 next to (low + high) / 2s + 1/2
    [low, high] fits s  when  high/s - z <= 127.5  and  low/s - z >= -128.5
    needed = the first of (high - low) / {255, 251, 247, 243, 239} that fits (239 always does)
    s256 = the largest `needed` of its eight blocks;  s = s256 / 2^e, e <= 6 the largest that fits
    q = clamp(round(x / s), z - 128, z + 127),  x' = s * q

Which rows are exact is the row's own affair: the first 64 positions of a sequence, generated
tokens, and whatever enters lm_head. Keys and values are rounded to binary16 as the cache holds
them. Everything else - products, norms, softmax - stays float32.
"""

from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

EXACT_POSITIONS = 64
STEPS = (255, 251, 247, 243, 239)
TINIEST = 1e-30  # what is less than that is zero beside anything


def blocks_of(x: torch.Tensor, size: int) -> torch.Tensor:
    """[..., k] -> [..., blocks, size], zero beyond the end of the row."""
    x = nn.functional.pad(x, (0, -x.shape[-1] % size))
    return x.unflatten(-1, (-1, size))


def scaled_integers(x: torch.Tensor, scale: torch.Tensor, low, high) -> torch.Tensor:
    """scale * clamp(round(x / scale), low, high); a row of zeros stays zero."""
    live = scale >= 1e-30
    inverse = torch.where(live, 1.0 / torch.where(live, scale, 1.0), 0.0)
    q = torch.clamp(torch.round(x * inverse), low, high)
    return q * torch.where(live, scale, 0.0)


def round_exact(x: torch.Tensor) -> torch.Tensor:
    """x: [rows, k] float32 -> the same values as two int8 halves per 32 represent them."""
    blocks = blocks_of(x, 32)
    scale = blocks.abs().amax(-1, keepdim=True) * torch.tensor(1.0 / 32512.0)
    rounded = scaled_integers(blocks, scale, -32512, 32512)
    return rounded.flatten(-2)[..., : x.shape[-1]]


def coarse_zero(low, high):
    """low, high: a range in steps."""
    return 16 * torch.round(((low + high) * 0.5 + 0.5) / 16)


def fits(low, high):
    zero = coarse_zero(low, high)
    return (high - zero <= 127.5) & (zero - low <= 128.5)


def round_digit(x: torch.Tensor) -> torch.Tensor:
    """x: [rows, k] float32 -> the same values as one int8 digit and an outlier represent them."""
    whole = blocks_of(x, 256)
    largest = whole.abs().argmax(-1, keepdim=True)
    outliers = whole.gather(-1, largest)
    blocks = whole.scatter(-1, largest, 0.0).unflatten(-1, (8, 32))  # [rows, k / 256, 8, 32]
    low = blocks.amin(-1, keepdim=True).clamp(max=0.0)
    high = blocks.amax(-1, keepdim=True).clamp(min=0.0)
    span = high - low
    most = torch.full_like(span, STEPS[-1])
    for steps in reversed(STEPS[:-1]):
        inverse = steps / span.clamp(min=TINIEST)
        most = torch.where(fits(low * inverse, high * inverse), float(steps), most)
    base = (span / most).amax(-2, keepdim=True)
    live = (base >= TINIEST) & (base >= outliers.abs().unsqueeze(-1) * TINIEST)
    inverse = torch.where(live, 1.0 / torch.where(live, base, 1.0), 0.0)
    low, high = low * inverse, high * inverse
    factor, going = torch.ones_like(low), torch.ones_like(low, dtype=torch.bool)
    for e in range(1, 7):
        going = going & fits(low * 2.0**e, high * 2.0**e)
        factor = torch.where(going, 2.0**e, factor)
    zero = coarse_zero(low * factor, high * factor)
    q = torch.clamp(torch.round(blocks * (inverse * factor)), zero - 128, zero + 127)
    rounded = (q * torch.where(live, base / factor, 0.0)).flatten(-2)
    rounded = rounded.scatter(-1, largest, outliers)
    return rounded.flatten(-2)[..., : x.shape[-1]]


def half_cache_attention(module, query, key, value, mask, scaling, **_):
    """Plain attention over keys and values as a binary16 cache gives them back."""
    groups = query.shape[1] // key.shape[1]
    key = key.half().float().repeat_interleave(groups, dim=1)
    value = value.half().float().repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("half_cache", half_cache_attention)
AttentionMaskInterface.register("half_cache", eager_mask)


@contextmanager
def emulated(model: nn.Module, activations: str):
    """Within, the model's forward over whole sequences rounds as `activations` does.

    activations: "auto" - the prompt rule, "exact" - two halves everywhere, as generated tokens.
    Only nn.Linear is covered: dense models. Raises ValueError for a model with expert tensors.
    """
    if activations not in ("auto", "exact"):
        raise ValueError(f"activations {activations!r}: 'auto' or 'exact'")
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        raise ValueError("the emulation covers dense models only")

    last: list = [None, None]  # q, k and v, like gate and up, are given the same tensor

    def before(module: nn.Linear, inputs):
        (x,) = inputs
        if last[0] is not x:
            if activations == "exact" or module is model.lm_head:
                rounded = round_exact(x)
            else:
                head, tail = x[:, :EXACT_POSITIONS], x[:, EXACT_POSITIONS:]
                rounded = torch.cat([round_exact(head), round_digit(tail)], dim=1)
            last[:] = x, rounded
        return (last[1],)

    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    hooks = [linear.register_forward_pre_hook(before) for linear in linears]
    plain = model.config._attn_implementation
    model.config._attn_implementation = "half_cache"
    try:
        yield model
    finally:
        model.config._attn_implementation = plain
        for hook in hooks:
            hook.remove()
