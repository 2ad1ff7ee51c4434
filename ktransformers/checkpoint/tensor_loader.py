"""Tensors of a model file by name, for operators people write: upstream's loaders, over our files.

Names may be transformers' (`model.layers.3.mlp.down_proj.weight`, `model.layers.3.mlp.down_proj`)
or the file's (`blk.3.ffn_down.weight`). Importing this needs no torch; loading a tensor does.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ktransformers.checkpoint.gguf import open_model
from ktransformers.checkpoint.naming import LAYER_TENSORS, TOP_TENSORS
from ktransformers.checkpoint.weights import unpair_rows
from ktransformers.errors import UserError

_LAYER = re.compile(r"model\.layers\.(\d+)\.?(.*)")
_STACKED = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(ffn_(?:gate|up|down)_exps)(\..+)?")


def _module_names() -> dict[str, str]:
    """{module of a layer: GGUF name without its ending}, from the one table of names."""
    found = {}
    for ours, theirs in LAYER_TENSORS.items():
        if ours.endswith((".weight", ".bias")):
            found[ours.rpartition(".")[0]] = theirs.rpartition(".")[0]
    return found


_MODULES = _module_names()
_TOP = {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for ours, theirs in TOP_TENSORS.items()}


def translate_name_to_gguf(name: str) -> str:
    """transformers' name of a parameter or module -> GGUF's; what is not known stays as it is.

    "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight";
    "model.layers.3.mlp.experts.ffn_up_exps" -> "blk.3.ffn_up_exps"; "lm_head" -> "output".
    """
    module, _, ending = name.rpartition(".")
    if ending not in ("weight", "bias"):
        module, ending = name, ""
    tail = f".{ending}" if ending else ""
    if module in _TOP:
        return _TOP[module] + tail
    layer = _LAYER.fullmatch(name)
    if not layer:
        return name
    block, rest = f"blk.{layer[1]}", layer[2]
    rest = rest.replace("block_sparse_moe.", "mlp.", 1) if "experts" not in rest else rest
    stacked = _STACKED.fullmatch(rest)
    if stacked:
        return f"{block}.{stacked[1]}{stacked[2] or ''}"
    if rest in LAYER_TENSORS:
        return f"{block}.{LAYER_TENSORS[rest]}"
    within = rest.removesuffix(tail) if tail else rest
    return f"{block}.{_MODULES.get(within, within)}{tail}" if rest else block


class GGUFLoader:
    """The tensors of a GGUF file (all parts of it) or a folder.

    gguf_path: file, part of a split model, or folder. tensor_info: {GGUF name: {"shape", "dims",
    "ggml_type", "n_elements", "n_bytes"}}; gguf_file_meta: the metadata; tensor_device_map: for
    whoever wants to note what is where. Raises: UserError.
    """

    def __init__(self, gguf_path: str | Path = "", *, model: Any = None):
        self.model = model if model is not None else open_model(gguf_path)
        self.gguf_path = str(self.model.path)
        self.gguf_file_meta = self.model.metadata
        self.tensor_device_map: dict[str, dict[str, Any]] = {}
        self.tensor_info = {
            info.name: {
                "shape": tuple(info.shape),
                "dims": tuple(reversed(info.shape)),
                "ggml_type": info.type,
                "n_elements": int(np.prod(info.shape, dtype=np.int64)),
                "n_bytes": info.nbytes,
            }
            for info in self.model.tensors.values()
        }

    def name_of(self, name: str) -> str:
        """The file's name of a tensor. Raises: UserError where there is none."""
        translated = translate_name_to_gguf(name)
        for candidate in (name, translated, f"{translated}.weight"):
            if candidate in self.tensor_info:
                return candidate
        if translated.startswith("output") and "token_embd.weight" in self.tensor_info:
            return "token_embd.weight"  # tied
        raise UserError(f"{self.gguf_path}: no tensor {name} (looked for {translated})")

    def has_tensor(self, name: str) -> bool:
        try:
            self.name_of(name)
        except UserError:
            return False
        return True

    def get_ggml_type(self, name: str) -> str:
        """The type the tensor is stored in, as "q4_k"."""
        return self.tensor_info[self.name_of(name)]["ggml_type"]

    def get_mmap_tensor(self, name: str) -> np.ndarray:
        """The stored bytes, uint8, read-only."""
        return self.model.data(self.name_of(name))

    def get_undequanted_tensor_and_ggml_type(self, name: str) -> tuple[Any, str]:
        """(uint8 tensor of the stored bytes, their type)."""
        import torch

        found = self.name_of(name)
        return torch.from_numpy(np.array(self.model.data(found))), self.get_ggml_type(found)

    def load_gguf_tensor(self, name: str, device: str = "cpu", target_dtype: Any = None) -> Any:
        """The values as transformers has them, [out, in] (experts: [experts, out, in]): float32 or
        `target_dtype`. Rows that files of architecture llama keep in rotary pairs are set right."""
        import torch

        found = self.name_of(name)
        values = self.model.dequantize(found)
        if self.model.architecture == "llama" and re.search(r"\.attn_[qk]\.", found):
            key = "head_count" if ".attn_q." in found else "head_count_kv"
            values = unpair_rows(values, int(self.gguf_file_meta[f"llama.attention.{key}"]))
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device)
        return tensor if target_dtype is None else tensor.to(target_dtype)

    load_tensor = load_gguf_tensor

    def load_expert_tensor(self, name: str, expert_id: int, device: str = "cpu") -> Any:
        """One expert's matrix [out, in] of a stacked tensor, float32."""
        import torch

        found = self.name_of(name)
        info = self.tensor_info[found]
        count = info["shape"][0]
        if len(info["shape"]) != 3 or not 0 <= expert_id < count:
            raise UserError(f"{self.gguf_path}: {found} has no expert {expert_id}")
        from ktransformers import _core

        rows = self.model.data(found).reshape(count, -1)[expert_id]
        values = _core.dequantize(np.ascontiguousarray(rows), info["ggml_type"])
        return torch.from_numpy(values.reshape(info["shape"][1:])).to(device)


class SafeTensorLoader(GGUFLoader):
    """The same for a Hugging Face folder; FP8 values are multiplied by their scales."""


class ModelLoaderFactory:
    """Upstream's way to get a loader."""

    @staticmethod
    def create_loader(path: str | Path) -> GGUFLoader:
        """A loader of the file or folder, whichever it is. Raises: UserError."""
        from ktransformers.checkpoint.folder_model import FolderModel

        model = open_model(path)
        kind = SafeTensorLoader if isinstance(model, FolderModel) else GGUFLoader
        return kind(model=model)
