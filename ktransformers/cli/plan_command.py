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
    from ktransformers.models.config import read_config
    from ktransformers.models.registry import family_for
    from ktransformers.optimize.default_plan import make_plan, parse_device_map
    from ktransformers.optimize.rules import load_rules

    devices = parse_device_map(device_map)
    if optimize_config_path:
        load_rules(optimize_config_path)
    gguf = open_model(gguf_path)
    config = read_config(gguf, model_path)
    family = family_for(config["model_type"])

    from ktransformers.optimize.report import print_plan, to_json
    from ktransformers.runtime.loading import build_on_meta

    model = build_on_meta(family, config)
    plan, _ = make_plan(model, family, gguf, config, optimize_config_path, devices)
    if as_json:
        print(json.dumps(to_json(plan), indent=1))
    else:
        print_plan(plan, every_layer)
