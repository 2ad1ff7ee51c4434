"""Upstream's address of the translation of tensor names."""

from ktransformers.checkpoint.tensor_loader import GGUFLoader, translate_name_to_gguf

__all__ = ["GGUFLoader", "translate_name_to_gguf"]
