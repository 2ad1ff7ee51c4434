"""Which linears and experts a card has in int4, by the rules of either dialect. No torch."""

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
    """The `quant` that a linear's matrix, or those of a layer's experts, have on their card, one of
    GROUPS; None: another type. weights: their WeightInfo, with the types they are loaded as.

    Raises RuleError where our dialect asks for what cannot be. In upstream's such a matrix keeps
    the file's type.
    """  # fmt: skip
    if rule is None:
        return None
    quant = getattr(options, "quant", None) if own else int4_of_op(rule)
    if quant not in GROUPS:
        return None
    if spec.name not in ("linear", "moe.experts") or rule.backend in ("cpu", "torch"):
        if own and quant in ONLY_CARDS:
            raise RuleError(
                rule.place,
                f"option quant: {quant} is for operators linear and moe.experts with backend: cuda",
            )
        return None
    # Attention takes kv_b apart, to f16.
    if not device.startswith("cuda") or module.endswith(".kv_b_proj"):
        return None
    for stored, _, cols in matrices(weights):
        if why := trouble(quant, stored, cols):
            if own:
                raise RuleError(rule.place, f"{module}: {why}; leave it out of the rule")
            return None
        # Upstream's files name this op wherever a GPU is: what it would round again stays as it is,
        # unless they name a group as well.
        if not own and quant == "int4" and stored not in KEPT:
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


def matrices(weights: Iterable) -> list[tuple[str, int, int]]:
    """(type, rows, columns) of every matrix, of experts those of one."""
    found = []
    for weight in weights:
        if len(weight.shape) < 2:
            continue
        rows, cols = weight.shape[-2:]
        parts = parts_of(weight)
        types = weight.type.split("+")
        if len(types) != parts:
            types = [types[0] if len(types) == 1 else weight.type] * parts
        found += [(kind, rows // parts, cols) for kind in types]
    return found


def parts_of(weight) -> int:
    """Matrices that one of its experts, or it itself, has: gate and up are one parameter."""
    name = weight.tensors[0] if weight.tensors else ""
    return 2 if len(weight.shape) == 3 and "gate" in name else 1


def forms(quant: str, weights: Iterable) -> str:
    """What the plan calls the forms of a module's matrices."""
    found = (form_of(quant, stored).name for stored, _, _ in matrices(weights))
    return "+".join(dict.fromkeys(found))


def int4_bytes(weight, quant: str) -> int:
    """Bytes of a parameter on a card that has matrices in int4."""
    if len(weight.shape) < 2:
        return weight.nbytes
    count = weight.shape[0] if len(weight.shape) == 3 else 1
    return count * sum(
        form_of(quant, stored).nbytes(rows, cols) for stored, rows, cols in matrices([weight])
    )
