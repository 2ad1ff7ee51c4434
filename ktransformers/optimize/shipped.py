"""The rule files that ship, one per family; a family's own is used when the user names none."""

from pathlib import Path

from ktransformers.models.base import Family

FOLDER = Path(__file__).parents[1] / "optimize_rules"


def shipped_rules(family: Family) -> Path:
    """The rule file of a family."""
    return FOLDER / family.rule_file
