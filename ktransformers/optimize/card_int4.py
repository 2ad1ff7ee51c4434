"""Which linears a card has in int4, by the rules of either dialect. No torch."""

from collections.abc import Iterable
from typing import Any

from ktransformers.operators.int4 import GROUPS, KEPT, ONLY_CARDS, form_of, trouble
from ktransformers.operators.registry import OperatorSpec
from ktransformers.operators.upstream_names import OP_WEIGHTS
from ktransformers.optimize.how import BITS, gpu_weights
from ktransformers.optimize.rules import Rule, RuleError


def int4_of(
    rule: Rule | None,
    own: bool,
    spec: OperatorSpec,
    device: str,
    module: str,
    options: Any,
    weights: Iterable,
) -> str | None:
    """The `quant` a linear's matrix has on its card, one of GROUPS; None: another type. weights:
    its WeightInfo.

    Raises RuleError where our dialect asks for what cannot be. In upstream's such a matrix keeps
    the file's type.
    """  # fmt: skip
    if rule is None:
        return None
    quant = getattr(options, "quant", None) if own else int4_of_op(rule)
    if quant not in GROUPS:
        return None
    if spec.name != "linear" or rule.backend in ("cpu", "torch"):
        if own and quant in ONLY_CARDS:
            raise RuleError(
                rule.place, f"option quant: {quant} is for operator linear with backend: cuda"
            )
        return None
    # Attention takes kv_b apart, to f16.
    if not device.startswith("cuda") or module.endswith(".kv_b_proj"):
        return None
    for weight in matrices(weights):
        if why := trouble(quant, weight.type, weight.shape[1]):
            if own:
                raise RuleError(rule.place, f"{module}: {why}; leave it out of the rule")
            return None
        # Upstream's files name this op wherever a GPU is: what it would round again stays as it is,
        # unless they name a group as well.
        if not own and quant == "int4" and weight.type not in KEPT:
            return None
    return quant


def int4_of_op(rule: Rule) -> str | None:
    """The `quant` that upstream's int4 ops mean: of the group a rule names, or plain int4, which
    keeps the codes of files that have 4 bits already."""
    asked = dict(rule.asked)
    op = asked.get("generate_op")
    if op not in OP_WEIGHTS or not gpu_weights(asked, op).startswith(f"int{BITS}g"):
        return None
    group = asked.get("group_size")
    quant = f"int4g{group}" if group else "int4"
    return quant if quant in GROUPS else None


def matrices(weights: Iterable) -> list:
    return [weight for weight in weights if len(weight.shape) == 2]


def forms(quant: str, weights: Iterable) -> str:
    """What the plan calls the form of a linear's matrix."""
    return "+".join(form_of(quant, weight.type).name for weight in matrices(weights))


def int4_bytes(weight, quant: str) -> int:
    """Bytes of a parameter on a card that has matrices in int4."""
    if len(weight.shape) != 2:
        return weight.nbytes
    return form_of(quant, weight.type).nbytes(*weight.shape)
