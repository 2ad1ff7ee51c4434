"""The configuration of a model as a plain dict of Hugging Face fields; imports no torch.

From GGUF metadata alone by default; a Hugging Face folder or Hub name, where given, wins. Both ways
the result carries "model_type" and "architectures" of a family this project knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ktransformers.checkpoint import metadata as md
from ktransformers.checkpoint.config_files import ModelFolder, open_folder
from ktransformers.errors import UserError
from ktransformers.models.base import Family
from ktransformers.models.registry import families, family_for, family_of

# Fields of a config.json that tell how its own weights are stored or name code: the weights come
# from the GGUF file, and code is never run.
_DROPPED = ("auto_map", "quantization_config", "compression_config", "torch_dtype", "dtype",
            "_name_or_path", "transformers_version", "_attn_implementation")  # fmt: skip
_KEPT = {"rope_parameters"}


def read_config(gguf: Any, model_path: str | Path | None = None) -> dict[str, Any]:
    """Configuration fields for the family's transformers config class.

    A folder's values replace the metadata's field by field; how positions are rotated stays with
    the metadata, whose tensors may already hold scaled frequencies.
    Raises: UserError for an unknown architecture, a folder that needs code, one that describes
    another model than `gguf`, or metadata out of range.
    """
    family = family_of(gguf)
    config = dict(family.config_from_gguf(gguf))
    if model_path is not None:
        folder = open_folder(model_path)
        if folder.has("config.json"):
            given = config_from_folder(folder, gguf)
            if given["model_type"] not in family.hf_model_types:
                raise UserError(
                    f"{folder.path / 'config.json'}: describes a {given['model_type']} model, but "
                    f"{md.file_name(gguf)} holds a {family.name} model"
                )
            taken = {key for key in given if key in config} - _KEPT
            config |= {key: given[key] for key in taken}
    config["model_type"] = family.hf_model_types[0]
    config["architectures"] = [_class_name(family)]
    return config


def config_from_folder(folder: ModelFolder, gguf: Any = None) -> dict[str, Any]:
    """The folder's config.json without what concerns code or stored weights.

    A model type that is unknown but whose architecture is a known class (Kimi-K2 calls itself
    "kimi_k2" and is a DeepSeek-V3) becomes that class's. With `gguf`, its sizes must agree.
    """
    where = folder.path / "config.json"
    config = folder.json("config.json")
    if config is None:
        raise UserError(f"{where}: missing; model_path needs the model's configuration files")
    family = _family_of(config, where)
    if config.get("model_type") not in family.hf_model_types:
        config["model_type"] = family.hf_model_types[0]
    config["architectures"] = [_class_name(family)]
    if gguf is not None:
        _check_same_model(config, where, gguf)
    return {key: value for key, value in config.items() if key not in _DROPPED}


def _class_name(family: Family) -> str:
    return family.causal_lm.partition(":")[2]


def _family_of(config: dict[str, Any], where: Path) -> Family:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    for family in families():
        if model_type in family.hf_model_types:
            return family
    if isinstance(architectures, list):
        for family in families():
            if _class_name(family) in architectures:
                return family
    known = ", ".join(sorted({name for f in families() for name in f.hf_model_types}))
    problem = f"model type {md.shown(model_type)} is not known (known: {known}; docs/families.md "
    problem += "tells how to add one)"
    if config.get("auto_map"):
        problem += "; it asks for code from the folder (auto_map), which is never run"
    raise UserError(f"{where}: {problem}")


def _check_same_model(config: dict[str, Any], where: Path, gguf: Any) -> None:
    architecture = md.get_str(gguf, "general.architecture", 64)
    family = family_for(config["model_type"])
    if architecture not in family.gguf_architectures:
        raise UserError(
            f"{where}: describes a {config['model_type']} model, but {md.file_name(gguf)} "
            f"holds architecture {md.shown(architecture)}"
        )
    # Layers used only to draft tokens are counted in GGUF and not in config.json.
    drafts = md.get_int(gguf, f"{architecture}.nextn_predict_layers", 0, 64, default=0)
    layers = md.get_int(gguf, f"{architecture}.block_count", 1, 4096, default=None)
    sizes = {
        "hidden_size": md.get_int(gguf, f"{architecture}.embedding_length", 1, default=None),
        "num_hidden_layers": None if layers is None else layers - drafts,
        "num_attention_heads": md.get_int(
            gguf, f"{architecture}.attention.head_count", 1, default=None
        ),
    }
    for field, expected in sizes.items():
        if expected is not None and config.get(field) != expected:
            raise UserError(
                f"{where}: {field} is {md.shown(config.get(field))}, but {md.file_name(gguf)} has "
                f"{expected}; model_path and the GGUF file belong to different models"
            )
