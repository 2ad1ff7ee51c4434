"""The rules of a model nobody wrote rules for: what the planner makes of this machine. No torch."""

from dataclasses import replace
from typing import Any

from ktransformers.models.base import Family
from ktransformers.optimize.box import Box, here
from ktransformers.optimize.facts import facts_of_model
from ktransformers.optimize.fit import Fit, fit
from ktransformers.optimize.fit_rules import rules_text
from ktransformers.optimize.quant import auto_quant
from ktransformers.optimize.rules import RuleSet, load_rules, parse_rules
from ktransformers.optimize.shipped import shipped_rules


def fitted(
    model: Any, family: Family, box: Box, context: int, prompt: int = 2048, fp8_cache: bool = False
):
    """(fit, rules that say the same) of an open model; without GPUs the family's own rules."""
    facts = replace(facts_of_model(model, auto_quant(model)), fp8_cache=fp8_cache)
    made = fit(facts, box, context, prompt)
    return made, rules_of(made, family)


def rules_of(made: Fit, family: Family) -> RuleSet:
    """The fit as rules. Raises: UserError."""
    if any(one.device != "cpu" for one in made.placed):
        return parse_rules(rules_text(made, family), "fit")
    return load_rules(shipped_rules(family))


def rules_for_loading(
    model: Any, family: Family, context: int, gpu: str = "auto", fp8_cache: bool = False
) -> tuple[RuleSet, list[str]]:
    """(rules, lines for the user), before a weight is read and without measuring anything. gpu:
    "off" leaves cards alone."""
    box = here() if gpu == "auto" else replace(here(), gpus=())
    made, rules = fitted(model, family, box, context, fp8_cache=fp8_cache)
    return rules, [made.verdict] if made.verdict else []
