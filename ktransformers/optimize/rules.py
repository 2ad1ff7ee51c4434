"""Rule files: which operator stands in for which module.

Two dialects, told apart by what `replace` names. Ours (`replace.operator`) is strict: whatever is
not understood is an error. Upstream's (`replace.class`) is read as upstream reads it: what upstream
ignores is ignored here with one line each. Nothing in a file is ever imported; names are looked up
in the operator registry. This module imports no torch.

    - match:   {name: '^model\\.layers\\.\\d+\\.mlp\\.experts$'}
      replace: {operator: moe.experts, backend: cpu}
      why:     experts are read once per token
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ktransformers import _core
from ktransformers.errors import UserError
from ktransformers.operators.registry import Registry, operators
from ktransformers.optimize.patterns import NamePattern, PatternError


@dataclass(frozen=True)
class Place:
    """Where something stands; lines and columns count from one."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def short(self) -> str:
        """File name and line, for tables."""
        return f"{Path(self.file).name}:{self.line}"


class RuleError(UserError):
    """One line, `file:line:column: what is wrong and what to do`."""

    def __init__(self, place: Place, what: str) -> None:
        super().__init__(f"{place}: {shortened(what)}")


def shortened(text: str, most: int = 400) -> str:
    """The text without its middle, where what a file says has made it very long."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} ... {text[-most // 4 :]}"


@dataclass(frozen=True)
class Match:
    """Both given means both must match; classes are alternatives.

    legacy: whether the classes a module had in upstream's models count.
    """

    place: Place
    name: NamePattern | None
    classes: tuple[str, ...]
    legacy: bool

    def names_match(self, name: str) -> bool:
        """Raises RuleError when the pattern takes too long."""
        try:
            return self.name is None or self.name.search(name)
        except PatternError as error:
            raise RuleError(self.place, str(error)) from None


@dataclass(frozen=True)
class Rule:
    """One entry of a file, checked.

    operator: a registered name; in upstream's dialect "default" means: whatever suits the module.
    backend: None leaves the choice to the planner (upstream's dialect).
    device: as written; None: the backend's own.
    options: an instance of the operator's options class, or None.
    written: what the file calls the operator, for messages.
    asked: (kwarg, value) pairs of upstream's dialect that the plan has to show.
    """

    place: Place
    match: Match
    operator: str
    backend: str | None
    written: str
    device: str | None = None
    options: Any = None
    why: str = ""
    optional: bool = False
    recursive: bool = True
    asked: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class RuleSet:
    """notes: lines for the user about what the file says and nobody acts on."""

    path: str
    dialect: Literal["own", "upstream"]
    rules: tuple[Rule, ...]
    notes: tuple[str, ...] = field(default=())


class Yaml:
    """A node of the file with what reading it needs: kind checks that name the place."""

    def __init__(self, node: Any, file: str, what: str) -> None:
        self.node, self.file, self.what = node, file, what

    @property
    def place(self) -> Place:
        return Place(self.file, self.node.line, self.node.column)

    @property
    def value(self) -> Any:
        return self.node.value

    def fail(self, what: str) -> RuleError:
        return RuleError(self.place, what)

    def described(self) -> str:
        """The value as a message shows it."""
        return self.node.kind if self.node.kind != "scalar" else f"{self.value!r}"

    def items(self) -> list["Yaml"]:
        if self.node.kind != "sequence":
            raise self.fail(f"{self.what} must be a list, not {self.described()}")
        return [Yaml(item, self.file, self.what) for item in self.node.items()]

    def fields(self) -> dict[Any, tuple[Place, "Yaml"]]:
        """{key: (place of the key, value)} of a map."""
        if self.node.kind != "map":
            raise self.fail(f"{self.what} must be a map, not {self.described()}")
        return {
            key.value: (
                Place(self.file, key.line, key.column),
                Yaml(value, self.file, str(key.value)),
            )
            for key, value in self.node.entries()
        }

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.fail(f"{self.what} must be text, not {self.described()}")
        return self.value

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.fail(f"{self.what} must be true or false, not {self.described()}")
        return self.value

    def plain(self) -> Any:
        """The value with everything in it: scalars, lists, dicts."""
        if self.node.kind == "map":
            return {key: value.plain() for key, (_, value) in self.fields().items()}
        if self.node.kind == "sequence":
            return [item.plain() for item in self.items()]
        return self.value

    def pattern(self) -> NamePattern:
        try:
            return NamePattern(self.text())
        except PatternError as error:
            raise self.fail(str(error)) from None


def load_rules(path: str | Path, registry: Registry | None = None) -> RuleSet:
    """Reads and checks one rule file.

    Raises UserError: the file cannot be read or parsed, is not a list of rules, mixes the dialects,
    or names an operator, class, op or (own dialect) key or option that does not exist.
    """
    return read_rules(read_yaml(path, "a rule file"), registry or operators())


def read_yaml(path: str | Path, what: str) -> Yaml:
    """The root of a YAML file; `what` names it in messages. Raises: UserError."""
    try:
        return Yaml(_core.parse_yaml(str(path)), str(path), what)
    except (_core.FormatError, OSError) as error:
        raise UserError(shortened(str(error), 400 + len(str(path)))) from None


def parse_rules(text: str, name: str = "rules", registry: Registry | None = None) -> RuleSet:
    """The same for a text in memory; `name` stands for the file in messages."""
    try:
        root = _core.parse_yaml_text(text.encode(), name)
    except _core.FormatError as error:
        raise UserError(shortened(str(error))) from None
    return read_rules(Yaml(root, name, "a rule file"), registry or operators())


def read_rules(root: Yaml, registry: Registry) -> RuleSet:
    from ktransformers.optimize import rules_own, rules_upstream

    entries = root.items() if root.value is not None else []
    if not entries:
        raise UserError(f"{root.file}: holds no rules")
    marks: dict[str, Place] = {}  # the first mark of each dialect
    for entry in entries:
        entry.what = "a rule"
        replace = entry.fields().get("replace")
        if replace and replace[1].node.kind == "map":
            for key, (place, _) in replace[1].fields().items():
                if key in ("operator", "class"):
                    marks.setdefault(key, place)
    if len(marks) == 2:
        raise RuleError(
            marks["operator"],
            f"replace.operator and replace.class ({marks['class'].short}) are two dialects; "
            "one file uses one of them",
        )
    if not marks:
        raise entries[0].fail(
            "a rule needs replace.operator (or replace.class, as upstream has it)"
        )
    if "operator" in marks:
        rules = tuple(rules_own.read(entry, registry) for entry in entries)
        return RuleSet(root.file, "own", rules)
    notes: list[str] = []
    rules = tuple(rules_upstream.read(entry, registry, notes) for entry in entries)
    return RuleSet(root.file, "upstream", rules, tuple(notes))
