"""`ktransformers plan`: which operator each module of a model gets, and why, without loading it."""

import json
from collections.abc import Sequence
from dataclasses import replace


def run(
    gguf_path: str,
    optimize_config_path: str | None = None,
    model_path: str | None = None,
    device_map: Sequence[str] = (),
    as_json: bool = False,
    every_layer: bool = False,
    context: int | None = None,
    prompt: int = 2048,
    threads: int | None = None,
    kv_type: str | None = None,
) -> None:
    """Prints the plan: a table with totals, or one JSON document.

    context: where no rule file is given, place by this machine's limits for a cache of so many
    positions and say what to expect; None takes the family's own rules.
    Rules and file are checked before torch is imported.
    Raises: UserError.
    """
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.optimize import fit_report
    from ktransformers.optimize.box import this_box
    from ktransformers.optimize.cache_types import check_has_card, checked_kv_type
    from ktransformers.optimize.devices import parse_device_map
    from ktransformers.optimize.fit import neighbours
    from ktransformers.optimize.fit_here import fitted
    from ktransformers.optimize.gpus import cuda_devices
    from ktransformers.optimize.plan import PlanContext, plan
    from ktransformers.optimize.quant import auto_quant, folder_notes
    from ktransformers.optimize.report import print_plan, to_json
    from ktransformers.optimize.rules import load_rules
    from ktransformers.optimize.shipped import shipped_rules
    from ktransformers.runtime.loading import build_on_meta, model_config

    checked_kv_type(kv_type)
    devices = parse_device_map(device_map)
    rules = load_rules(optimize_config_path) if optimize_config_path else None
    gguf = open_model(gguf_path)
    family, config = model_config(gguf, model_path)
    expected = None
    if rules is None and context is not None:
        expected, rules = fitted(gguf, family, this_box(threads), context, prompt, kv_type == "fp8")
    rules = rules or load_rules(shipped_rules(family))
    gpus = len(expected.box.gpus) if expected else cuda_devices()
    planning = PlanContext(devices, cuda_devices=gpus, auto_quant=auto_quant(gguf))

    from ktransformers.optimize.tree import describe

    made = plan(describe(build_on_meta(family, config), family, gguf), rules, planning)
    made = replace(made, notes=(*made.notes, *folder_notes(gguf)))
    check_has_card(kv_type, (row.device for row in made.placements))
    if as_json:
        document = to_json(made) | ({"fit": fit_report.to_json(expected)} if expected else {})
        print(json.dumps(document, indent=1))
        return
    print_plan(made, every_layer)
    if expected:
        options = {"context": context, "prompt": prompt}
        changes = neighbours(expected.facts, expected.box, **options)
        report = fit_report.lines(expected) + fit_report.change_lines(expected, changes)
        print("\n" + "\n".join(report))
