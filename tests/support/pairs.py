"""A miniature, our model of it and transformers' reference, each made once per process."""

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tests.support.families import Family, families
from tests.support.miniatures import miniature, write
from tests.support.reference import Reference

_FOLDER = tempfile.TemporaryDirectory(prefix="kt-miniatures-")


@dataclass(frozen=True)
class Pair:
    """model: ours, in f32, lowered. reference: transformers' model of the same weights."""

    path: Path
    family: Family
    model: Any
    reference: Any


@lru_cache
def path_of(name: str) -> Path:
    """The F32 miniature of a family."""
    return write(miniature(name), Path(_FOLDER.name) / f"{name}.gguf")


@lru_cache
def reference_of(name: str):
    """transformers' model of the family, in float32."""
    return Reference.load(path_of(name), families()[name]).model


@lru_cache
def pair(name: str) -> Pair:
    """Both models of a family's F32 miniature."""
    path = path_of(name)
    return Pair(path, families()[name], load(path), reference_of(name))


def load(path, **options):
    """Our model of a file, in f32 unless told otherwise."""
    from ktransformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path), **{"activations": "f32"} | options)


def left_padded(prompts: list[list[int]], pad: int = 0) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask of prompts of different lengths."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(one)) + one for one in prompts]
    mask = [[0] * (width - len(one)) + [1] * len(one) for one in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
