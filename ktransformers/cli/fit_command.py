"""`ktransformers plan --fit` and `--suggest`: a placement with its reasons, before any weight is
read and without torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktransformers.errors import UserError
from ktransformers.models.known import KNOWN
from ktransformers.models.registry import family_for, family_of
from ktransformers.optimize.box import GB, Box, read_box, this_box
from ktransformers.optimize.cache_types import check_has_card, checked_kv_type
from ktransformers.optimize.facts import ModelFacts, facts_of_model
from ktransformers.optimize.fit import fit, neighbours
from ktransformers.optimize.fit_report import change_lines, lines, to_json
from ktransformers.optimize.fit_rules import fixed_by, int4_by, write_rules
from ktransformers.optimize.hot import hot_profile
from ktransformers.optimize.known import PUBLISHED, known_facts
from ktransformers.optimize.quant import auto_quant
from ktransformers.optimize.rules import load_rules


def box_of(machine: str | None, threads: int | None) -> Box:
    return read_box(machine) if machine else this_box(threads)


def run(
    gguf_path: str | None,
    known: str | None = None,
    machine: str | None = None,
    context: int = 8192,
    prompt: int = 2048,
    rules_path: str | None = None,
    write: str | None = None,
    threads: int | None = None,
    as_json: bool = False,
    profile: str | None = None,
    kv_type: str | None = None,
) -> None:
    """Prints the fit of a file or a known model. Raises: UserError."""
    checked_kv_type(kv_type)
    rules = load_rules(rules_path) if rules_path else None
    if (gguf_path is None) == (known is None):
        raise UserError("give either --gguf_path FILE or --known MODEL:QUANT")
    if known:
        facts: ModelFacts = known_facts(known)
        name = next(k for k in KNOWN if k.lower() == known.partition(":")[0].lower())
        family = family_for("llama" if name.startswith("Mistral") else KNOWN[name]["model_type"])
    else:
        from ktransformers.checkpoint.gguf import open_model

        model = open_model(gguf_path)
        facts = facts_of_model(model, auto_quant(model), int4_by(rules))
        family = family_of(model)
    facts = replace(facts, fp8_cache=kv_type == "fp8")
    fixed = fixed_by(rules)
    box = box_of(machine, threads)
    options: dict[str, Any] = {"context": context, "prompt": prompt, "fixed": fixed}
    options["profile"] = hot_profile(profile, facts) if profile else None
    made = fit(facts, box, **options)
    check_has_card(kv_type, (one.device for one in made.placed))
    if as_json:
        print(json.dumps(to_json(made), indent=1))
    else:
        print("\n".join(lines(made) + change_lines(made, neighbours(facts, box, **options))))
    if write:
        write_rules(made, family, Path(write), rules_path)
        print(f"written: {write}")
    if made.verdict:
        raise UserError(made.verdict)


def suggest(
    machine: str | None = None,
    context: int = 8192,
    threads: int | None = None,
    kv_type: str | None = None,
) -> None:
    """Which quants of the known models fit, the best one that does of each, and how fast."""
    checked_kv_type(kv_type)
    box = box_of(machine, threads)
    if not box.gpus:
        check_has_card(kv_type, ())
    print(f"{box.line()}; context {context}")
    print(f"{'model':<20} {'quant':<8} {'GB':>7} {'tokens/s':>9} {'prompts':>8}")
    shown = 0
    for name in KNOWN:
        fitting = []
        for chosen in PUBLISHED.values():
            facts = replace(known_facts(f"{name}:{chosen.name}"), fp8_cache=kv_type == "fp8")
            made = fit(facts, box, context)
            if not made.verdict:
                fitting.append((chosen.name, made))
        # The largest that fits, and the smaller one that is twice as fast, if there is one.
        fitting.sort(key=lambda item: item[1].facts.nbytes)
        picks = fitting[-1:] + [f for f in fitting if f[1].speed > 2 * fitting[-1][1].speed][-1:]
        for quant, made in picks:
            shown += 1
            print(f"{name:<20} {quant:<8} {made.facts.nbytes / GB:>7.1f} {made.speed:>9.1f} "
                  f"{made.prompt:>8.0f}")  # fmt: skip
    if not shown:
        raise UserError("none of the known models fits; a smaller context needs less")
