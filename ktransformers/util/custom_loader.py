"""Upstream's address of the loaders."""

from ktransformers.checkpoint.tensor_loader import (
    GGUFLoader,
    ModelLoaderFactory,
    SafeTensorLoader,
    translate_name_to_gguf,
)

__all__ = ["GGUFLoader", "ModelLoaderFactory", "SafeTensorLoader", "translate_name_to_gguf"]
