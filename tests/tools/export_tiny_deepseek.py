"""Writes the small trained DeepSeek-V3 as GGUF; tests/support/tiny_deepseek.py tells the layout."""

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer

from tests.support import tiny_deepseek as tiny
from tests.support.miniatures import Miniature, Tensor, always_f32, architecture_metadata, write


def tokenizer_metadata(tokenizer: Tokenizer) -> dict:
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    kinds = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [token for token, _ in vocab],
        "tokenizer.ggml.token_type": [int(kinds[t in (tiny.BOS, tiny.EOS)]) for t, _ in vocab],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": tiny.BOS_ID,
        "tokenizer.ggml.eos_token_id": tiny.EOS_ID,
        "tokenizer.ggml.padding_token_id": tiny.EOS_ID,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def gguf_tensors(
    state: dict[str, torch.Tensor], num_layers: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (GGUF name, values in torch's shape); the fused gate_up is cut in two.

    Names come from the gguf package's own table, so that they are not checked against themselves:
    the reader of the tests has a table of its own.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, num_layers)
    for name, tensor in state.items():
        parts = {name.replace("e_score_correction_bias", "e_score_correction.bias"): tensor}
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            gate, up = tensor.chunk(2, dim=1)
            parts = {stem + "gate_proj.weight": gate, stem + "up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            parts = {name + ".weight": tensor}
        for part_name, part in parts.items():
            gguf_name = names.get_name(part_name, try_suffixes=(".weight", ".bias"))
            if gguf_name is None:
                raise ValueError(f"no GGUF name for {part_name}")
            yield gguf_name, part.float().numpy()


def export(state: dict[str, torch.Tensor], tokenizer: Tokenizer, path: Path) -> None:
    """Writes weights, metadata and tokenizer as one F16 GGUF file."""
    result = Miniature(tiny.FAMILY)
    result.metadata = {
        "general.type": "model",
        "general.name": "Tiny DeepSeek V3 Shakespeare",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_F16),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    result.metadata |= {result.key(k): v for k, v in architecture_metadata(tiny.FAMILY).items()}
    result.metadata |= tokenizer_metadata(tokenizer)
    for name, values in gguf_tensors(state, tiny.FAMILY.config["num_hidden_layers"]):
        kind, dtype = (
            (Type.F32, np.float32) if always_f32(name, values.shape) else (Type.F16, np.float16)
        )
        result.tensors[name] = Tensor(kind, np.ascontiguousarray(values, dtype).view(np.uint8))
    write(result, path)
