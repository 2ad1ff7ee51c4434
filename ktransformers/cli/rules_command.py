"""`ktransformers rules check`: what each rule of a file does to a model, without its weights."""

from collections.abc import Sequence
from typing import Any

from ktransformers.errors import UserError
from ktransformers.models.known import KNOWN


def tree_of(model: str) -> tuple[Any, Any]:
    """(tree, open file or None) of a GGUF, a folder, or a known model at its full depth."""
    from ktransformers.models.registry import family_for

    values = next((v for k, v in KNOWN.items() if k.lower() == model.lower()), None)
    if values is not None:
        gguf, config = None, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
        family = family_for(values["model_type"])
        config |= values
    else:
        from ktransformers.checkpoint.gguf import open_model
        from ktransformers.checkpoint.hub import resolve_model
        from ktransformers.runtime.loading import model_config

        gguf = open_model(resolve_model(model))
        family, config = model_config(gguf)
    from ktransformers.optimize.tree import describe
    from ktransformers.runtime.loading import build_on_meta

    return describe(build_on_meta(family, config), family, gguf), gguf


def check(path: str, model: str, device_map: Sequence[str] = (), gpus: int = 0) -> int:
    """Prints the report. Returns 0, or 1 where a rule takes nothing. Raises: UserError."""
    from ktransformers.optimize.check import check as check_rules
    from ktransformers.optimize.check import lines
    from ktransformers.optimize.devices import parse_device_map
    from ktransformers.optimize.plan import PlanContext
    from ktransformers.optimize.rules import load_rules

    rules = load_rules(path)
    context = PlanContext(device_map=parse_device_map(device_map), cuda_devices=gpus)
    tree, _ = tree_of(model)
    made = check_rules(tree, rules, context)
    print(f"{path}: {rules.dialect} dialect, {len(rules.rules)} rules, {len(tree) - 1} modules")
    print("\n".join(lines(made)))
    if made.error:
        raise UserError(made.error)
    return 1 if any(not one.takes and not one.rule.optional for one in made.rules) else 0
