"""What a model's makers say about generating: end tokens and recommended sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ktransformers.checkpoint import metadata as md
from ktransformers.checkpoint.config_files import ModelFolder, open_folder
from ktransformers.checkpoint.tokenizer_vocab import read_vocabulary
from ktransformers.errors import UserError

# GGUF's recommended sampling -> generation config; with the range a sampler accepts.
_SAMPLING = {
    "general.sampling.temp": ("temperature", 0.0, 100.0),
    "general.sampling.top_p": ("top_p", 0.0, 1.0),
    "general.sampling.min_p": ("min_p", 0.0, 1.0),
    "general.sampling.penalty_repeat": ("repetition_penalty", 0.01, 100.0),
}
_GENERATION_FIELDS = {
    "temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "top_k": (0, 2**31 - 1),
    "repetition_penalty": (0.01, 100.0),
}  # fmt: skip


def read_generation_config(gguf: Any, model_path: str | Path | None = None) -> dict[str, Any]:
    """Ids that begin, end and pad a text, and the sampling the model's makers recommend.

    "eos_token_id" is always a list: every id that ends an answer. Fields: bos_token_id,
    eos_token_id, pad_token_id, do_sample, temperature, top_k, top_p, min_p, repetition_penalty.
    """
    vocab = read_vocabulary(gguf)
    values: dict[str, Any] = {"eos_token_id": vocab.end_ids()}
    for name in ("bos", "pad"):
        if name in vocab.special:
            values[f"{name}_token_id"] = vocab.special[name]
    if "pad_token_id" not in values and values["eos_token_id"]:
        values["pad_token_id"] = vocab.special.get("eos", values["eos_token_id"][0])
    for key, (field, lo, hi) in _SAMPLING.items():
        number = md.get_float(gguf, key, lo, hi, default=None)
        if number is not None:
            values[field] = number
    top_k = md.get_int(gguf, "general.sampling.top_k", 0, default=None)
    if top_k is not None:
        values["top_k"] = top_k
    if model_path is not None:
        _add_from_folder(values, open_folder(model_path), len(vocab.tokens))
    return values


def _add_from_folder(values: dict[str, Any], folder: ModelFolder, count: int) -> None:
    given = folder.json("generation_config.json") or {}
    where = folder.path / "generation_config.json"
    for field, (lo, hi) in _GENERATION_FIELDS.items():
        value = given.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not lo <= value <= hi:
            raise UserError(f"{where}: {field}: {md.shown(value)} is not a number in {lo}..{hi}")
        values[field] = value
    if isinstance(given.get("do_sample"), bool):
        values["do_sample"] = given["do_sample"]
    ends = given.get("eos_token_id")
    if ends is not None:
        ends = ends if isinstance(ends, list) else [ends]
        for token_id in ends:
            inside = type(token_id) is int and 0 <= token_id < count
            if not inside:
                problem = f"{md.shown(token_id)} is outside the vocabulary of {count} tokens"
                raise UserError(f"{where}: eos_token_id: {problem}")
        values["eos_token_id"] = sorted({*values["eos_token_id"], *ends})
