"""checkpoint -> model on meta -> plan -> apply -> lower: one call."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktransformers import _core
from ktransformers.errors import UserError


@dataclass
class Runtime:
    """What a loaded model carries beside its modules (`model.kt`)."""

    engine: Any
    gguf: Any
    family: Any
    plan: Any
    decoder: Any = None
    notes: list[str] = field(default_factory=list)
    rule_file: str = ""
    last_stats: Any = None


def load_model(
    gguf_path: str | Path,
    model_path: str | None = None,
    optimize_config_path: str | None = None,
    cpu_infer: int | None = None,
    activations: str = "auto",
    cache_lens: int = 8192,
    kv_type: str | None = None,
    lowered: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
):
    """The model in a GGUF file as a transformers PreTrainedModel run by the core.

    gguf_path: file, part of a split model, or folder. model_path: a Hugging Face folder or id whose
    config and tokenizer files win over the metadata. optimize_config_path: rule file; None takes the
    family's. cpu_infer: worker threads; None takes every usable core. activations: "auto" |
    "exact" | "f32" (see Arithmetic). cache_lens: positions the cache may hold, over all sequences.
    kv_type: f32, f16, bf16, q8_0 or "f16+q8_0"; None takes f16 (f32 in f32 mode).
    lowered: False runs module by module.
    Raises: UserError.
    """
    from ktransformers.checkpoint.config import read_config
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.checkpoint.weights import Weights
    from ktransformers.models.registry import family_for
    from ktransformers.optimize.default_plan import make_plan

    threads = usable_threads(cpu_infer)
    gguf = open_model(gguf_path)
    config = read_config(gguf, model_path)
    family = family_for(config["model_type"])
    model = build_on_meta(family, config)
    plan, rule_file = make_plan(model, family, gguf, config, optimize_config_path)

    from ktransformers.operators.engine import Engine
    from ktransformers.optimize.apply import apply
    from ktransformers.runtime.lowering import cache_widths, lower

    engine = Engine(threads, activations, kv_type, cache_lens)
    weights = Weights(gguf, model.config.to_dict() | config)
    apply(model, plan.placements, weights, engine, progress)
    engine.widths = cache_widths(model)
    engine.make_pool(engine.widths)
    runtime = Runtime(engine, gguf, family, plan, rule_file=rule_file)
    if lowered:
        result = lower(model, engine)
        runtime.decoder, runtime.notes = result.decoder, result.notes
    model.kt = runtime
    set_generation_config(model, gguf, model_path)
    return model.eval()


def usable_threads(cpu_infer: int | None) -> int:
    """Worker threads for a request: None for all usable cores. Raises: UserError below 1."""
    most = _core.cpu_info()["default_threads"]
    if cpu_infer is None:
        return most
    if cpu_infer < 1:
        raise UserError(f"--cpu_infer {cpu_infer}: at least one thread is needed")
    return min(cpu_infer, _core.cpu_info()["cpus"])


def build_on_meta(family, config: dict):
    """transformers' module tree of the family, without memory for its weights."""
    import torch

    from ktransformers.runtime.generation import wrap_class

    cls = family.hf_class()
    fields = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    try:
        hf_config = cls.config_class(**fields)
    except Exception as error:  # transformers validates with exceptions of many kinds
        raise UserError(f"the configuration does not fit a {family.name} model: {error}") from error
    hf_config._attn_implementation = "sdpa"
    hf_config.architectures = [cls.__name__]
    with torch.device("meta"):
        return wrap_class(cls)(hf_config)


def set_generation_config(model, gguf, model_path: str | None) -> None:
    """Stop ids of the model's own tokenizer; sampling settings of a folder's generation_config."""
    from transformers import GenerationConfig

    from ktransformers.checkpoint.generation import generation_defaults

    model.generation_config = GenerationConfig(**generation_defaults(gguf, model_path))
