"""A fit as rules of our dialect, and a user's partial rules as what the fit must keep. No torch."""

import json
from collections.abc import Callable
from pathlib import Path

from ktransformers.errors import UserError
from ktransformers.models.base import Family
from ktransformers.operators.int4 import GROUPS
from ktransformers.optimize.facts import Group
from ktransformers.optimize.fit import Fit
from ktransformers.optimize.report import ranges
from ktransformers.optimize.rules import Rule, RuleSet, load_rules
from ktransformers.optimize.shipped import shipped_rules

# The modules of a group that hold weights, below "model.layers.N.".
PARTS = {"attention": "self_attn", "shared": "mlp\\.shared_expert", "dense": "mlp"}
# Which groups decide where an operator computes. The MoE block is where its router is; what it
# calls is placed on its own.
DECIDES = {
    "norm.rms": ("attention",), "attention.gqa": ("attention",), "attention.mla": ("attention",),
    "moe.router": ("attention",), "moe.block": ("attention",), "moe.experts": ("experts",),
    "mlp.swiglu": ("dense", "shared"), "linear": ("attention", "dense", "shared"),
}  # fmt: skip
# One module of each, to ask a user's rules about.
SAMPLES = {"attention": "self_attn", "shared": "mlp.shared_experts", "dense": "mlp",
           "experts": "mlp.experts"}  # fmt: skip

MATRICES = {
    "attention": ("self_attn.o_proj",), "dense": ("mlp.down_proj",), "head": ("lm_head",),
    "shared": ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj"),
    "experts": ("mlp.experts",),
}  # fmt: skip


def write_rules(fit: Fit, family: Family, path: Path, user: str | None = None) -> None:
    """The fit as a complete rule file: the user's rules, then the GPUs', then the family's own.

    Raises: UserError where `path` is there already.
    """
    if path.exists():
        raise UserError(f"{path}: is there already; choose another name or remove it")
    path.write_text(rules_text(fit, family, user))


def rules_text(fit: Fit, family: Family, user: str | None = None) -> str:
    """What write_rules writes."""
    shipped = shipped_rules(family)
    out = [
        f"# {fit.facts.name} on {fit.box.line()}",
        f"# context {fit.context}; predicted: {fit.speed:.1f} tokens/s, prompts "
        f"{fit.prompt:.0f} tokens/s. Written by `ktransformers plan --fit`.\n",
    ]
    if user:
        out += ["# ---- as given ----", Path(user).read_text().rstrip() + "\n"]
    on = layers_on(fit)
    for rule in load_rules(shipped).rules:
        for device, kinds in on.items():
            out += gpu_rules(rule, device, kinds, fit.profile.path if fit.profile else None)
    rest = shipped.read_text()
    out += [f"# ---- the rest: {shipped.name} ----", all_optional(rest) if on or user else rest]
    return "\n".join(out)


def all_optional(text: str) -> str:
    """Shipped rules behind others, which may have taken all that some of them match."""
    blocks = text.split("\n- match:")
    done = [b if "\n  optional:" in b else b.rstrip() + "\n  optional: true\n" for b in blocks[1:]]
    return "\n- match:".join([blocks[0], *done])


def layers_on(fit: Fit) -> dict[str, dict[str, list[int]]]:
    """{GPU: {kind: layers the planner put there}}; the head's layer is -1. The kind of layers of
    which only some experts are there is "experts:NUMBER"."""
    found: dict[str, dict[str, list[int]]] = {}
    for one in fit.placed:
        if one.device != "cpu" and one.reason != "a rule says so":
            kind = one.group.kind if one.experts is None else f"{one.group.kind}:{one.experts}"
            found.setdefault(one.device, {}).setdefault(kind, []).append(one.group.layer)
    return dict(sorted(found.items()))


def gpu_rules(
    rule: Rule, device: str, on: dict[str, list[int]], profile: str | None = None
) -> list[str]:
    """A rule of the family's file once more, for the modules of a GPU."""
    text = rule.match.name.text if rule.match.name else ""
    if text == "^lm_head$" or (rule.operator == "norm.rms" and "head" in on):
        own = [one_rule(rule, device, "^lm_head$" if text else r"^model\.norm$", "the head")]
        own = own if "head" in on else []
        if text == "^lm_head$":
            return own
    else:
        own = []
    wanted = DECIDES.get(rule.operator, ())
    for kind in [one for one in on if one.partition(":")[0] in wanted]:
        layers = r"^model\.layers\." + numbers(on[kind])
        if text.startswith(r"^model\.layers\.\d+"):
            pattern = layers + text.removeprefix(r"^model\.layers\.\d+")
        elif rule.operator in ("norm.rms", "moe.block"):
            pattern = layers + r"\."
        else:
            pattern = layers + r"\." + PARTS[kind]
        name, _, count = kind.partition(":")
        what = f"{count} {name} of layers {ranges(on[kind])}".lstrip()
        options = {"experts": count} if count else {}
        if count and profile:
            options["profile"] = json.dumps(profile)
        own.append(one_rule(rule, device, pattern, what, options))
    return own


def one_rule(
    rule: Rule, device: str, pattern: str, what: str, options: dict[str, str] | None = None
) -> str:
    given = ", ".join(f"{key}: {value}" for key, value in (options or {}).items())
    more = f", options: {{{given}}}" if given else ""
    classes = f", class: [{', '.join(rule.match.classes)}]" if rule.match.classes else ""
    return (
        f"- match: {{name: '{pattern}'{classes}}}\n"
        f"  replace: {{operator: {rule.operator}, backend: cuda, device: '{device}'{more}}}\n"
        f"  why: 'fits there: {what}'\n"
        f"  optional: true\n"
    )


def numbers(layers: list[int]) -> str:
    """A pattern of these numbers: [0..11] -> (?:[0-9]|1[0-1])."""
    wanted, parts = set(layers), []
    for tens in range(max(wanted) // 10 + 1):
        digits = [n % 10 for n in sorted(wanted) if n // 10 == tens]
        if digits:
            runs = ranges(digits).strip("{}").replace(",", "")
            parts.append(f"{tens or ''}[{runs}]")
    return f"(?:{'|'.join(parts)})"


def fixed_by(rules: RuleSet | None) -> Callable[[Group], str | None]:
    """What a user's partial rules say of a group: its device, or None. Raises: UserError for rules
    that cannot be asked without building the model."""
    if rules is None:
        return lambda group: None
    if rules.dialect != "own":
        raise UserError(
            f"{rules.path}: a file in upstream's dialect places every module; --fit plans what "
            "rules of our dialect leave open"
        )
    for rule in rules.rules:
        if rule.match.name is None:
            raise UserError(f"{rule.place}: with --fit a rule has to match by name, not by class")

    def device(group: Group) -> str | None:
        if group.layer < 0:
            name = "lm_head" if group.kind == "head" else "model.embed_tokens"
        else:
            name = f"model.layers.{group.layer}.{SAMPLES[group.kind]}"
        for rule in rules.rules:
            if rule.match.names_match(name):
                return "cpu" if rule.backend != "cuda" else rule.device or "cuda:0"
        return None

    return device


def int4_by(rules: RuleSet | None) -> Callable[[str, int], str | None] | None:
    """What a user's partial rules want a group's matrices on a GPU in, by one of them."""
    if rules is None:
        return None

    def quant(kind: str, layer: int) -> str | None:
        if kind not in MATRICES:
            return None
        names = [f"model.layers.{layer}.{one}" if layer >= 0 else one for one in MATRICES[kind]]
        for rule in rules.rules:
            if rule.match.name is not None and any(map(rule.match.names_match, names)):
                asked = getattr(rule.options, "quant", None)
                return asked if rule.backend == "cuda" and asked in GROUPS else None
        return None

    return quant
