"""The plan of a model with the user's rules, or with those that ship for its family."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ktransformers.errors import UserError
from ktransformers.models.base import Family
from ktransformers.optimize.plan import Plan, PlanContext, plan
from ktransformers.optimize.rules import load_rules
from ktransformers.optimize.shipped import shipped_rules
from ktransformers.optimize.tree import describe


def make_plan(
    model: Any,
    family: Family,
    gguf: Any,
    config: dict[str, Any],
    optimize_config_path: str | Path | None = None,
    device_map: dict[str, str] | None = None,
) -> tuple[Plan, str]:
    """(the plan, the rule file it follows) for a model on the meta device.

    Raises UserError for errors in the rules, or a tensor the file lacks.
    """
    rules = load_rules(optimize_config_path or shipped_rules(family))
    tree = describe(model, family, gguf, config)
    return plan(tree, rules, PlanContext(device_map=device_map or {})), rules.path


def parse_device_map(words: Iterable[str]) -> dict[str, str]:
    """["cuda:0=cpu", "cuda:1=cpu"] (or both in one word, with a comma) -> a PlanContext.device_map.

    Raises UserError for a word without "=", or a device this version does not have.
    """
    found = {}
    for word in ",".join(words).split(","):
        if not word:
            continue
        source, _, target = (part.strip() for part in word.partition("="))
        if not source or target != "cpu":
            raise UserError(f"--device-map {word}: write DEVICE=cpu, as in cuda:0=cpu")
        found[source] = target
    return found
