"""Upstream's dialect, read as kvcache-ai/ktransformers v0.3.2 reads it.

What upstream imports by name is looked up in tables here. What it swallows gives one line each.
Where it would only fail later (a null `kwargs`, an unknown op), it fails here with the place.
"""

import re
from typing import Any

from ktransformers.operators.registry import Kwargs, LatentOptions, Registry
from ktransformers.operators.upstream_names import (
    CPU_BACKENDS,
    CPU_OPS,
    DEVICE_KWARGS,
    IGNORED_KWARGS,
    TORCH_MODULES,
    UPSTREAM_KWARGS,
    UPSTREAM_MODULES,
)
from ktransformers.optimize.rules import Match, Place, Rule, Yaml
from ktransformers.optimize.rules_own import suggestion

RULE_KEYS = ("match", "replace", "recursive")
MATCH_KEYS = ("name", "class")
REPLACE_KEYS = ("class", "kwargs", "device")
# Values that the plan shows, and which kwargs are read as which: older spellings.
COUNTS = ("num_bits", "group_size", "block_size", "chunck_size")
SPELLINGS = {"mlp_type": "op", "linear_type": "op"}
_DEVICE = re.compile(r"[a-z]+(:\d+)?")
_TRANSFORMERS = re.compile(r"transformers\.models\.\w+\.modeling_\w+\.\w+")


def read(entry: Yaml, registry: Registry, notes: list[str]) -> Rule:
    """One rule; appends to `notes` what is ignored. Raises RuleError."""
    fields = entry.fields()
    ignore_unknown(fields, RULE_KEYS, "key", notes)
    for key in ("match", "replace"):
        if key not in fields:
            raise entry.fail(f"the rule has no {key}")
    match = read_match(fields["match"][1], notes)
    replace = fields["replace"][1].fields()
    ignore_unknown(replace, REPLACE_KEYS, "key replace", notes)
    written = replace["class"][1].text() if "class" in replace else "default"
    operator = find_operator(written, replace, registry)
    if registry.has(operator, "torch") and registry.lookup(operator, "torch").is_plugin:
        return read_plugin(entry, match, operator, replace, read_recursive(fields, notes))
    kwargs = read_kwargs(replace, written, operator, registry, notes)
    return Rule(
        place=entry.place,
        match=match,
        operator=operator,
        backend=kwargs["backend_of_op"],
        written=written,
        device=kwargs["generate_device"],
        asked=tuple((key, value) for key, value in kwargs.items() if key != "backend_of_op"),
        options=LatentOptions(kwargs["absorb_for_prefill"])
        if "absorb_for_prefill" in kwargs
        else None,
        recursive=read_recursive(fields, notes),
    )


def read_plugin(entry: Yaml, match: Match, operator: str, replace: dict, recursive: bool) -> Rule:
    """A rule whose class somebody wrote: all kwargs are its constructor's, devices too."""
    node = replace["kwargs"][1] if "kwargs" in replace else None
    empty = node is None or (node.value is None and node.node.kind == "scalar")
    values = {} if empty else node.fields()
    device = values["generate_device"][1] if "generate_device" in values else None
    return Rule(
        place=entry.place,
        match=match,
        operator=operator,
        backend="torch",
        written=operator,
        device=read_device(device) if device else None,
        options=Kwargs(tuple((key, value.plain()) for key, (_, value) in values.items())),
        recursive=recursive,
    )


def ignore_unknown(
    fields: dict[Any, tuple[Place, Yaml]], known: Any, what: str, notes: list[str]
) -> None:
    for key, (place, _) in fields.items():
        if key not in known:
            joined = f"{what}.{key}" if what.endswith("replace") else f"{what} {key}"
            notes.append(f"{place.file}:{place.line}: ignored {joined}")


def read_match(node: Yaml, notes: list[str]) -> Match:
    fields = node.fields()
    ignore_unknown(fields, MATCH_KEYS, "match key", notes)
    if "name" not in fields and "class" not in fields:
        raise node.fail("match needs a name or a class")
    classes: tuple[str, ...] = ()
    if "class" in fields:
        value = fields["class"][1]
        known = value.text() in UPSTREAM_MODULES or value.text() in TORCH_MODULES
        if not known and not _TRANSFORMERS.fullmatch(value.text()):
            choices = sorted(UPSTREAM_MODULES | TORCH_MODULES)
            hint = suggestion(value.text(), choices)
            raise value.fail(f"unknown class {value.text()!r}" + (hint if "mean" in hint else ""))
        classes = (value.text(),)
    name = fields["name"][1].pattern() if "name" in fields else None
    return Match(node.place, name, classes, legacy=True)


def find_operator(written: str, replace: dict, registry: Registry) -> str:
    try:
        operator = registry.upstream_class(written)
    except KeyError:
        hint = suggestion(written, registry.upstream_classes())
        raise replace["class"][1].fail(
            f"unknown class {written!r}" + (hint if "mean" in hint else "")
        ) from None
    if operator is None:
        raise replace["class"][1].fail(
            f"{written} belongs to an architecture this build does not run"
        )
    return operator


def read_kwargs(
    replace: dict, written: str, operator: str, registry: Registry, notes: list[str]
) -> dict[str, Any]:
    """What the kwargs ask for: generate_device as written or None, backend_of_op ("torch" or None),
    and every other kwarg that means something, by name."""
    found: dict[str, Any] = {"generate_device": None, "backend_of_op": None}
    if "device" in replace:  # upstream's README shows it, its loader never reads it
        place, value = replace["device"]
        found["generate_device"] = found["prefill_device"] = read_device(value)
        notes.append(
            f"{place.file}:{place.line}: replace.device, which upstream never reads, is taken as "
            "generate_device and prefill_device"
        )
    if "kwargs" not in replace:
        return found
    node = replace["kwargs"][1]
    if node.value is None and node.node.kind == "scalar":
        notes.append(f"{node.file}:{node.place.line}: kwargs is null, taken as if left out")
        return found
    known = DEVICE_KWARGS | UPSTREAM_KWARGS.get(operator, frozenset())
    for key, (place, value) in node.fields().items():
        if key in IGNORED_KWARGS or key not in known:
            notes.append(f"{place.file}:{place.line}: ignored kwarg {key} of {written}")
        elif key.endswith("_device"):
            found[key] = read_device(value)
        elif key.endswith(("_op", "_type")):
            read_op_kwarg(key, value, operator, registry, found, place, notes)
        elif key == "transfer_map":
            if value.value is not None or value.node.kind == "map":
                found[key] = read_transfer_map(value)
        elif key == "backend":
            if value.value not in CPU_BACKENDS:
                raise value.fail(f"unknown backend {value.described()}; known: "
                                 + ", ".join(CPU_BACKENDS))  # fmt: skip
            found[key] = value.value
        elif key == "absorb_for_prefill":
            found[key] = value.boolean()
        elif key == "per_layer_prefill_intput_threshold" or key in COUNTS:
            if value.value is not None and (
                isinstance(value.value, bool) or not isinstance(value.value, int) or value.value < 0
            ):
                raise value.fail(f"{key} must be a number of at least 0, not {value.described()}")
            found[key] = value.value or 0
    return found


def read_op_kwarg(key, value, operator, registry, found, place, notes) -> None:
    """generate_op, prefill_op and their older spellings; into `found`."""
    phase, _, what = key.partition("_")
    backend = read_op(value, operator, registry)
    name = f"{phase}_{SPELLINGS.get(what, what)}"
    if value.value == "None":
        notes.append(f"{place.file}:{place.line}: {key} is the text 'None', taken as null")
    if value.value in (None, "None"):
        return
    found[name] = value.text()
    if phase == "generate":
        found["backend_of_op"] = backend
        if value.text() in CPU_OPS:
            found["runs_on"] = "cpu"


def read_device(value: Yaml) -> str:
    text = value.text().lower()
    if text == "gpu":  # upstream's older tutorials
        return "cuda"
    if not _DEVICE.fullmatch(text):
        raise value.fail(f"{value.text()!r} is no device; write cpu, cuda or cuda:0")
    return text


def read_op(value: Yaml, operator: str, registry: Registry) -> str | None:
    """The backend an op name asks for; null and the text "None" ask for nothing."""
    if value.value is None or value.value == "None":
        return None
    ops = registry.upstream_ops(operator)
    if value.text() not in ops:
        raise value.fail(
            f"unknown op {value.text()!r} for {operator}{suggestion(value.text(), ops)}"
        )
    return registry.upstream_op(value.text()).backend


def read_transfer_map(value: Yaml) -> tuple[tuple[int, str], ...]:
    """{layer: device}: from that layer on, what flows from layer to layer is on that device."""
    found = {}
    for layer, (place, device) in value.fields().items():
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise Yaml(value.node, place.file, "").fail(
                f"transfer_map: {layer!r} is no layer number"
            )
        found[layer] = read_device(device)
    return tuple(sorted(found.items()))


def read_recursive(fields: dict, notes: list[str]) -> bool:
    """Python's truth of the value, as upstream takes it: the text "False" is true."""
    if "recursive" not in fields:
        return True
    place, node = fields["recursive"]
    if isinstance(node.value, str):
        notes.append(
            f"{place.file}:{place.line}: recursive is the text {node.value!r}, which counts as "
            f"{'true' if node.value else 'false'}; write it without quotes"
        )
    return bool(node.value)
