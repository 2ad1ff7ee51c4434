"""What a rule file does to a model: which rule took what, which nothing, and why. No torch."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ktransformers.errors import UserError
from ktransformers.optimize.plan import ModuleInfo, PlanContext, class_matches, plan
from ktransformers.optimize.report import ranges
from ktransformers.optimize.rules import Rule, RuleSet

_LAYER = re.compile(r"\.layers\.(\d+)(?=\.|$)")


@dataclass
class RuleCheck:
    """takes: modules the rule decides; shadowed: modules it matches that an earlier rule takes, by
    the line of that rule. advice: what to change, where it takes nothing."""

    rule: Rule
    takes: list[str] = field(default_factory=list)
    shadowed: dict[int, list[str]] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)  # below a rule with recursive: false
    advice: str = ""


@dataclass
class Check:
    """untouched: modules with an operator of their own that no rule takes. error: what `plan` has
    against the file, or ""."""

    rules: list[RuleCheck]
    untouched: list[str]
    notes: list[str]
    error: str = ""


def check(tree: Sequence[ModuleInfo], rules: RuleSet, context: PlanContext) -> Check:
    """Every rule of a file against every module of a model."""
    found = [RuleCheck(rule) for rule in rules.rules]
    untouched, closed = [], None
    for module in tree:
        if not module.name:
            continue
        is_closed = closed is not None and module.name.startswith(closed)
        first = None
        for one in found:
            if not matches(one.rule, module):
                continue
            if is_closed:
                one.hidden.append(module.name)
            elif first is None:
                first = one.rule
                one.takes.append(module.name)
            else:
                one.shadowed.setdefault(first.place.line, []).append(module.name)
        if is_closed:
            continue
        closed = module.name + "." if first is not None and not first.recursive else None
        if first is None and module.kind:
            untouched.append(module.name)
    for one in found:
        if not one.takes:
            one.advice = advice(one, tree)
    notes, error = list(rules.notes), ""
    try:
        notes = list(plan(tree, rules, context).notes)
    except UserError as refused:
        error = str(refused)
    return Check(found, untouched, notes, error)


def matches(rule: Rule, module: ModuleInfo) -> bool:
    names = (module.name, *module.aliases)
    return class_matches(rule, module) and any(map(rule.match.names_match, names))


def advice(one: RuleCheck, tree: Sequence[ModuleInfo]) -> str:
    """What to do about a rule that takes nothing."""
    if one.shadowed:
        lines = ", ".join(map(str, sorted(one.shadowed)))
        return f"move it above line {lines}, or remove it"
    if one.hidden:
        return "what it matches lies below a module with recursive: false"
    match = one.rule.match
    if match.classes:
        by_class = [m.name for m in tree if class_matches(one.rule, m) and m.name]
        if by_class and match.name:
            return f"the class is there ({by_class[0]}), the name does not fit; nearest: " + (
                nearest(match.name.text, by_class)
            )
        if not by_class:
            bare = {name.rpartition(".")[2] for m in tree for name in m.class_names}
            close = difflib.get_close_matches(match.classes[0].rpartition(".")[2], bare, n=2)
            return "the model has no such class" + (f"; it has {', '.join(close)}" if close else "")
    return f"no module has such a name; nearest: {nearest(match.name.text, [m.name for m in tree])}"


def nearest(pattern: str, names: Sequence[str]) -> str:
    """The module names most like a pattern with its signs taken out."""
    plain = re.sub(r"\(\?[=!<:][^)]*\)|\\d\+|\[[^\]]*\]|[\\^$()?*+|]", "", pattern)
    shapes = list(dict.fromkeys(_LAYER.sub(".layers.N", name) for name in names if name))
    return ", ".join(difflib.get_close_matches(plain, shapes, n=2, cutoff=0.3)) or shapes[0]


def summed(names: Sequence[str]) -> list[str]:
    """Module names with their layers taken together: model.layers.{0-47}.mlp."""
    found: dict[str, list[int]] = {}
    for name in names:
        layer = _LAYER.search(name)
        found.setdefault(_LAYER.sub(".layers.*", name, count=1), [])
        if layer:
            found[_LAYER.sub(".layers.*", name, count=1)].append(int(layer[1]))
    return [
        name.replace(".layers.*", f".layers.{ranges(layers)}", 1) if layers else name
        for name, layers in found.items()
    ]


def lines(made: Check, most: int = 6) -> list[str]:
    """The report: a line per rule, then what no rule takes, then notes."""
    out = []
    for one in made.rules:
        rule = one.rule
        head = f"{rule.place.short}  {rule.written}"
        if one.takes:
            shown = summed(one.takes)
            more = f" and {len(shown) - most} more" if len(shown) > most else ""
            out.append(f"{head}: {len(one.takes)} modules: {', '.join(shown[:most])}{more}")
            for line, names in sorted(one.shadowed.items()):
                out.append(f"    {len(names)} more it matches are taken at line {line}")
        else:
            what = "takes nothing"
            if one.shadowed:
                count = sum(map(len, one.shadowed.values()))
                what = f"shadowed: all {count} modules it matches are taken by rules above"
            out.append(f"{head}: {what}; {one.advice}")
    if made.untouched:
        shown = summed(made.untouched)
        more = f" and {len(shown) - most} more" if len(shown) > most else ""
        out.append(f"no rule: {len(made.untouched)} modules: {', '.join(shown[:most])}{more}")
    return out + made.notes + ([f"error: {made.error}"] if made.error else [])
