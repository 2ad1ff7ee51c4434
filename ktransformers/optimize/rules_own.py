"""Our dialect: strict, because a rule that silently does nothing costs its author an evening."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any

from ktransformers.operators.registry import Kwargs, OperatorSpec, Registry
from ktransformers.optimize.rules import Match, Place, Rule, RuleError, Yaml

RULE_KEYS = ("match", "replace", "why", "optional", "recursive")
MATCH_KEYS = ("name", "class")
REPLACE_KEYS = ("operator", "backend", "device", "options")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,2})?")


def read(entry: Yaml, registry: Registry) -> Rule:
    """One rule. Raises RuleError with the place of whatever is not as it should be."""
    fields = known_fields(entry, RULE_KEYS)
    for key in ("match", "replace"):
        if key not in fields:
            raise entry.fail(f"the rule has no {key}")
    if "why" not in fields or not fields["why"][1].text().strip():
        raise entry.fail("the rule has no why: say what it is for")
    replace = known_fields(fields["replace"][1], REPLACE_KEYS)
    if "operator" not in replace:
        raise fields["replace"][1].fail("replace has no operator")
    spec = find_operator(replace, registry)
    options = read_options(replace.get("options"), spec)
    return Rule(
        place=entry.place,
        match=read_match(fields["match"][1]),
        operator=spec.name,
        backend=spec.backend,
        written=spec.name,
        device=read_device(replace, spec),
        options=options,
        why=" ".join(fields["why"][1].text().split()),
        optional="optional" in fields and fields["optional"][1].boolean(),
        recursive="recursive" not in fields or fields["recursive"][1].boolean(),
    )


def read_device(replace: Mapping[str, tuple[Place, Yaml]], spec: OperatorSpec) -> str | None:
    """The device of a rule whose backend computes there. Raises RuleError."""
    if "device" not in replace:
        return None
    value = replace["device"][1]
    text = value.text()
    if not _DEVICE.fullmatch(text):
        raise value.fail(f"{text!r} is no device; write cpu, cuda or cuda:0")
    if (spec.backend == "cuda") != text.startswith("cuda"):
        raise value.fail(f"backend {spec.backend} does not compute on {text}")
    return text


def known_fields(node: Yaml, known: Iterable[str]) -> dict[str, tuple[Place, Yaml]]:
    """The fields of a map whose keys must all be in `known`."""
    fields = node.fields()
    for key, (place, _) in fields.items():
        if key not in known:
            raise RuleError(place, f"unknown key {key!r}{suggestion(key, known)}")
    return fields


def suggestion(wrong: Any, known: Iterable[str]) -> str:
    """'; did you mean x?' or '; known are a, b', to put after a complaint."""
    known = list(known)
    close = difflib.get_close_matches(str(wrong), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known) or 'none'}"


def read_match(node: Yaml) -> Match:
    fields = known_fields(node, MATCH_KEYS)
    if not fields:
        raise node.fail("match needs a name pattern or a class")
    classes: tuple[str, ...] = ()
    if "class" in fields:
        value = fields["class"][1]
        many = value.items() if value.node.kind == "sequence" else [value]
        if not many:
            raise value.fail("class lists no class")
        classes = tuple(one.text() for one in many)
    name = fields["name"][1].pattern() if "name" in fields else None
    return Match(node.place, name, classes, legacy=False)


def find_operator(replace: Mapping[str, tuple[Place, Yaml]], registry: Registry) -> OperatorSpec:
    operator = replace["operator"][1]
    name = operator.text()
    backends = registry.backends(name)
    if not backends:
        raise operator.fail(f"unknown operator {name!r}{suggestion(name, registry.names())}")
    if "backend" not in replace:
        return registry.lookup(name, backends[0])
    backend = replace["backend"][1]
    if backend.text() not in backends:
        raise backend.fail(
            f"operator {name} has no backend {backend.text()!r} in this build; "
            f"it has: {', '.join(backends)}"
        )
    return registry.lookup(name, backend.text())


def read_options(written: tuple[Place, Yaml] | None, spec: OperatorSpec) -> Any:
    """An instance of the operator's options class, each value checked against its annotation."""
    if spec.is_plugin:
        fields = written[1].fields() if written is not None else {}
        return Kwargs(tuple((key, value.plain()) for key, (_, value) in fields.items()))
    hints = typing.get_type_hints(spec.options)
    values = {}
    if written is not None:
        names = [field.name for field in dataclasses.fields(spec.options)]
        for key, (place, value) in written[1].fields().items():
            if key not in names:
                raise RuleError(
                    place, f"operator {spec.name} has no option {key!r}{suggestion(key, names)}"
                )
            if value.node.kind != "scalar" or not fits(value.value, hints[key]):
                raise value.fail(
                    f"option {key} must be {type_text(hints[key])}, not {value.described()}"
                )
            values[key] = coerced(value.value, hints[key])
    try:
        return spec.options(**values)
    except (TypeError, ValueError) as error:  # a missing option, or a range the class checks itself
        place = written[0] if written else None
        raise (RuleError(place, str(error)) if place else error) from None


def fits(value: Any, hint: Any) -> bool:
    """True if a YAML scalar is of an annotated type: bool, int, float, str, Literal, unions."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(hint))
    if origin in (typing.Union, UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def coerced(value: Any, hint: Any) -> Any:
    """An integer becomes a float where the annotation has float and not int."""
    kinds = typing.get_args(hint) or (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in kinds and int not in kinds else value


def type_text(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if origin in (typing.Union, UnionType):
        return " or ".join(map(type_text, typing.get_args(hint)))
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return "null" if hint is NoneType else names.get(hint, str(hint))
