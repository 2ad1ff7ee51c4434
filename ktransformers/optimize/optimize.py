"""Upstream's entry point, at upstream's address: a model on the meta device becomes one that runs.

with torch.device("meta"):
    model = DeepseekV3ForCausalLM(config)
optimize_and_load_gguf(model, "rules.yaml", "model.gguf", config)
"""

import inspect
from pathlib import Path
from typing import Any

from ktransformers.errors import UserError


def optimize_and_load_gguf(
    module: Any,
    rule_file: str | Path | None,
    gguf_path: str | Path,
    model_config: Any = None,
    default_device: str = "cuda:0",
    q4_gguf_path: str = "",
    **options: Any,
) -> None:
    """Plans, applies and lowers in place: the module keeps its name and becomes our model.

    module: transformers' *ForCausalLM of the file's family. rule_file: either dialect; None takes
    the family's own. model_config: the module's own configuration counts. default_device: the CPU
    stands in for a GPU this machine has not. options: cpu_infer, activations, cache_lens, kv_type,
    lowered, as in AutoModelForCausalLM.from_pretrained.
    Raises: UserError.
    """
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.optimize.rules import load_rules
    from ktransformers.optimize.shipped import shipped_rules
    from ktransformers.runtime import loading

    kind = str(default_device).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"default_device='{default_device}': choose cpu or cuda")
    if q4_gguf_path:
        raise UserError("q4_gguf_path: one file holds all weights here; leave it out")
    known = set(inspect.signature(loading.load_model).parameters)
    known &= {"cpu_infer", "activations", "cache_lens", "kv_type", "lowered"}
    if unknown := sorted(options.keys() - known):
        raise UserError(f"optimize_and_load_gguf: {', '.join(unknown)}: no such argument")

    gguf = open_model(gguf_path)
    family, config = loading.model_config(gguf)
    rules = load_rules(rule_file or shipped_rules(family))
    threads = loading.usable_threads(options.pop("cpu_infer", None))
    lowered = options.pop("lowered", True)

    from ktransformers.operators.engine import Engine
    from ktransformers.runtime.generation import wrap_class

    cls = family.hf_class()
    if type(module) is not cls:
        raise UserError(
            f"{gguf.path}: holds a {family.name} model ({cls.__name__}), the module is a "
            f"{type(module).__name__}"
        )
    if not all(parameter.is_meta for parameter in module.parameters()):
        raise UserError('the module has weights of its own; build it under torch.device("meta")')
    module.config._attn_implementation = "sdpa"
    loading.bind(module, gguf, family, config, rules, Engine(threads, **options), lowered)
    module.__class__ = wrap_class(cls)
    loading.set_generation_config(module, gguf, None)
    module.gguf_loader = gguf
    module.eval()
