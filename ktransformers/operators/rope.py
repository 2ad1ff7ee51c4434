"""rope/cpu: the rotary frequencies, computed by transformers from the configuration."""

import numpy as np
import torch

from ktransformers import _core
from ktransformers.operators.base import Operator

ROPE_FREQS = "rope_freqs.weight"


def real_rotary(module, config, gguf) -> torch.nn.Module:
    """A rotary module with real frequencies, from one built on the meta device.

    Files with llama-3 scaling carry its divisors (rope_freqs.weight), applied here.
    """
    with torch.device("cpu"):
        rotary = type(module)(config=config)
    if ROPE_FREQS in gguf.tensors:
        divisors = torch.from_numpy(np.array(gguf.dequantize(ROPE_FREQS)))
        rotary.inv_freq = rotary.inv_freq / divisors
    return rotary


class Rope(Operator):
    """Replaces the model's rotary embedding; forward is transformers' own."""

    def __init__(self, module, name, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.rotary = module
        self.core = None

    def load(self, weights) -> None:
        self.rotary = real_rotary(self.rotary, self.config, weights.gguf)
        # Only DeepSeek's query and key rows come in rotary pairs.
        self.is_interleaved = hasattr(self.config, "qk_rope_head_dim") and getattr(
            self.config, "rope_interleave", True
        )
        self.core = _core.Rope(
            self.rotary.inv_freq.float().numpy(), self.rotary.attention_scaling, self.is_interleaved
        )

    @property
    def inv_freq(self) -> torch.Tensor:
        return self.rotary.inv_freq

    def forward(self, x, position_ids, *args, **kwargs):
        return self.rotary(x, position_ids, *args, **kwargs)
