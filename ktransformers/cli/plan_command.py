"""`ktransformers plan`: which operator each module of a model gets, and why, without loading it."""

import json
from collections.abc import Sequence


def run(
    gguf_path: str,
    optimize_config_path: str | None = None,
    model_path: str | None = None,
    device_map: Sequence[str] = (),
    as_json: bool = False,
    every_layer: bool = False,
) -> None:
    """Prints the plan: a table with totals, or one JSON document.

    Rules and file are checked before torch is imported.
    Raises: UserError.
    """
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.optimize.devices import parse_device_map
    from ktransformers.optimize.plan import PlanContext, plan
    from ktransformers.optimize.quant import auto_quant
    from ktransformers.optimize.report import print_plan, to_json
    from ktransformers.optimize.rules import load_rules
    from ktransformers.optimize.shipped import shipped_rules
    from ktransformers.runtime.loading import build_on_meta, model_config

    devices = parse_device_map(device_map)
    rules = load_rules(optimize_config_path) if optimize_config_path else None
    gguf = open_model(gguf_path)
    family, config = model_config(gguf, model_path)
    rules = rules or load_rules(shipped_rules(family))
    context = PlanContext(device_map=devices, auto_quant=auto_quant(gguf))

    from ktransformers.optimize.tree import describe

    made = plan(describe(build_on_meta(family, config), family, gguf), rules, context)
    if as_json:
        print(json.dumps(to_json(made), indent=1))
    else:
        print_plan(made, every_layer)
