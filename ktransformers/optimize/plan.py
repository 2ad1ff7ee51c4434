"""Which operator takes each module, on which device, because of which rule: decided, not yet done.

`plan` is a function of a described tree, a rule set and a context; it touches no weights and
imports no torch, so a plan can be printed and tested without a model in memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ktransformers.checkpoint.pieces import PLAIN, fitting_type, type_bytes
from ktransformers.errors import UserError
from ktransformers.operators.int4 import ONLY_CARDS
from ktransformers.operators.registry import OperatorSpec, Registry, operators
from ktransformers.optimize.card_int4 import forms, int4_bytes, int4_of
from ktransformers.optimize.how import describe, quant_of_backend
from ktransformers.optimize.rules import Place, Rule, RuleError, RuleSet


@dataclass(frozen=True)
class WeightInfo:
    """One parameter. tensors: GGUF names; type: GGUF type(s); nbytes: in the file."""

    tensors: tuple[str, ...]
    type: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def float_bytes(self) -> int:
        """Bytes of the values as float32."""
        count = 4
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class ModuleInfo:
    """A module of the tree, as rules see it.

    name: dotted path, "" for the root. kind: the operator made for it; "" for a mere container.
    class_names: full names of its class and that class's bases; legacy_classes: what it was in
    upstream's models. aliases: the names it had there. weights: by full parameter name; only its
    own, not its children's.
    """

    name: str
    class_names: tuple[str, ...]
    kind: str = ""
    legacy_classes: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    weights: Mapping[str, WeightInfo] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """The bare name of its class."""
        return self.class_names[0].rpartition(".")[2]

    def has_class(self, wanted: str, legacy: bool) -> bool:
        """A full name must be equal; a bare one is compared with the last part."""
        names = self.class_names + self.legacy_classes if legacy else self.class_names
        if "." in wanted:
            return wanted in names
        return any(name.rpartition(".")[2] == wanted for name in names)


@dataclass(frozen=True)
class PlanContext:
    """What the plan depends on besides tree and rules.

    device_map: what a device of the rules stands for, {"cuda:0": "cpu"}; "cuda" covers every
        "cuda:N" without an entry of its own. cuda_devices: how many this machine has.
    auto_quant: what `quant: auto` loads matrices as; None keeps the file's types.
    """

    device_map: Mapping[str, str] = field(default_factory=dict)
    cuda_devices: int = 0
    auto_quant: str | None = None
    registry: Registry | None = None


@dataclass(frozen=True)
class PlanRow:
    """One module and its operator. rule None: no rule asked for it. nbytes: resident afterwards.

    parameters: full names of the parameters the operator binds; those of the modules below too
    where the rule takes the whole subtree (`subtree`). types: of tensors that are loaded as another
    type than they are stored in. how: what else the rule asked for, in our words (optimize/how.py).
    """

    module: str
    kind: str
    operator: str
    backend: str
    device: str
    options: Any
    rule: Place | None
    why: str
    nbytes: int
    parameters: tuple[str, ...]
    tensors: tuple[str, ...]
    subtree: bool = False
    types: Mapping[str, str] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    on_cpu: int = 0  # of a GPU's row: bytes of the experts that stay in RAM, beside nbytes
    smaller: int = 0  # bytes that int4 saves; below zero where it takes more than the file's type


@dataclass(frozen=True)
class Plan:
    """rows in the order of the tree; notes: lines for the user."""

    rules_path: str
    dialect: str
    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...]

    @property
    def placements(self) -> tuple[PlanRow, ...]:
        """The rows that replace a module, in the order of the tree."""
        return tuple(row for row in self.rows if row.operator not in ("default", "model"))

    @property
    def lowered(self) -> bool:
        """Whether the loop over the layers runs in the core: operator `model` on the model."""
        return any(row.operator == "model" for row in self.rows)

    def row(self, module: str) -> PlanRow:
        """Raises KeyError when the plan has nothing for that module."""
        for row in self.rows:
            if row.module == module:
                return row
        raise KeyError(module)

    def device_bytes(self) -> dict[str, int]:
        """Bytes per device; a tensor two modules share (tied embeddings) counts once."""
        totals: dict[str, int] = {}
        seen: set[tuple[str, str, tuple[str, ...]]] = set()
        for row in self.rows:
            totals.setdefault(row.device, 0)
            key = (row.device, row.backend, row.tensors)
            if not row.tensors or key not in seen:
                totals[row.device] += row.nbytes
                if row.on_cpu:
                    totals["cpu"] = totals.get("cpu", 0) + row.on_cpu
            seen.add(key)
        return totals


def plan(tree: Sequence[ModuleInfo], rules: RuleSet, context: PlanContext | None = None) -> Plan:
    """Assigns every module below the root to an operator.

    The first rule that matches a module takes it; its children are matched on their own unless the
    rule says `recursive: false`. A module no rule matches keeps transformers' code in our dialect
    and gets its natural operator in upstream's, where "default" means just that.

    Raises UserError: a rule's operator does not fit a module it matches, a device is unknown, or
    (our dialect) a rule matches nothing and is not optional.
    """
    planner = _Planner(rules, context or PlanContext())
    return planner.run(tree)


class _Planner:
    def __init__(self, rules: RuleSet, context: PlanContext) -> None:
        self.rules, self.context = rules, context
        self.own = rules.dialect == "own"
        self.registry = context.registry or operators()
        self.rows: list[PlanRow] = []
        self.used: set[int] = set()  # indices of rules that took a module
        self.moved: dict[str, str] = {}  # devices of the file that mean another one here
        self.unmatched: list[str] = []

    def run(self, tree: Sequence[ModuleInfo]) -> Plan:
        closed: str | None = None  # no rule looks below this module
        whole = False  # and its row takes everything below
        for index, module in enumerate(tree):
            if module.name == "":
                continue
            if closed is not None and module.name.startswith(closed):
                if not whole:
                    self.add(module, None)
                continue
            rule = self.first_match(module)
            closed = None
            below = _below(tree, index) if rule and not rule.recursive else ()
            if rule and not rule.recursive:
                closed, whole = module.name + ".", self.own
            self.add(module, rule, below if self.own else ())
        notes = [*self.rules.notes, *self.unused_rules(tree), *self.device_notes()]
        notes += self.follow_parts()
        if self.unmatched and self.own:
            notes.append(
                f"{self.rules.path}: no rule for {len(self.unmatched)} modules, the first is "
                f"{self.unmatched[0]}; they run as plain torch modules"
            )
        return Plan(self.rules.path, self.rules.dialect, tuple(self.rows), tuple(notes))

    def first_match(self, module: ModuleInfo) -> Rule | None:
        """The rule that takes the module: in our dialect the first that matches any of its names.

        In upstream's, several modules of theirs may be one module today (a rotary embedding per
        layer): each of its names finds its own first rule, all of these count as used, and the
        module follows the first that is more than "default".
        """
        found: list[Rule] = []
        names = (module.name, *module.aliases)
        if self.own:
            for index, rule in enumerate(self.rules.rules):
                if class_matches(rule, module) and any(map(rule.match.names_match, names)):
                    self.used.add(index)
                    return rule
            return None
        for name in names:
            for index, rule in enumerate(self.rules.rules):
                if class_matches(rule, module) and rule.match.names_match(name):
                    self.used.add(index)
                    found.append(rule)
                    break
        return next((rule for rule in found if rule.operator != "default"), next(iter(found), None))

    def add(self, module: ModuleInfo, rule: Rule | None, below: Iterable[ModuleInfo] = ()) -> None:
        """Appends the module's row, if it needs one."""
        below = [one for one in below if one.kind or one.weights]
        if not (module.kind or module.weights or below):
            if rule and rule.operator != "default":
                raise self.misfit(rule, module)
            return
        if rule is None:
            self.unmatched.append(module.name)
        spec, device = self.choose_own(module, rule) if self.own else self.choose(module, rule)
        if below and spec.kind != "" and rule:
            raise RuleError(
                rule.place,
                f"recursive: false on {module.name}: {spec.name} works through the operators of "
                f"its children ({below[0].name}); operator default takes a whole subtree",
            )
        weights = dict(module.weights)
        for one in below:
            weights.update(one.weights)
        in_file = spec.resident == "file"
        options = rule.options if rule and rule.options is not None else spec.options()
        how: dict[str, Any] = {}
        if rule and not self.own:
            how = describe(rule, spec, device, lambda written: self.device_of(rule, written))
        # Experts that stay in RAM have the type that those on the card are made of.
        source = "auto" if spec.name == "moe.experts" else "file"
        made_of = self.as_types(weights.values(), self.loaded_types(weights.values(), source))
        quant = int4_of(rule, self.own, spec, device, module.name, options, made_of)
        if quant:
            options = replace(options, quant=quant)
            how.pop("upstream", None)
            how["weights"] = forms(quant, made_of)
        asked = source if quant else getattr(options, "quant", "file")
        types = self.loaded_types(weights.values(), asked)
        share = resident_share(rule, options, weights.values(), device)
        if rule and not self.own:
            floats = quant_of_backend(rule)
            if floats and spec.backend == "cpu" and self.context.auto_quant:
                types = self.loaded_types(weights.values(), floats, floats_only=True)
        nbytes = sum(loaded_bytes(w, types) if in_file else w.float_bytes for w in weights.values())
        there = int(nbytes * share)
        on_cpu, smaller = nbytes - there, 0
        if quant:
            smaller = there - int(sum(int4_bytes(w, quant) for w in made_of) * share)
        self.rows.append(
            PlanRow(
                module=module.name,
                kind=module.kind,
                operator=spec.name,
                backend=spec.backend,
                device=device,
                options=options,
                rule=rule.place if rule else None,
                why=rule.why if rule else "",
                nbytes=there - smaller,
                on_cpu=on_cpu,
                smaller=smaller,
                parameters=tuple(weights),
                tensors=tuple(name for w in weights.values() for name in w.tensors),
                subtree=bool(below),
                types=types,
                how=how,
            )
        )

    def loaded_types(
        self, weights: Iterable[WeightInfo], quant: str, floats_only: bool = False
    ) -> dict[str, str]:
        """{tensor: type} of matrices that `quant` has loaded as another type than the stored.
        floats_only, and `auto`: what is quantised stays."""
        floats_only = floats_only or quant == "auto"
        kind = self.context.auto_quant if quant == "auto" else quant
        if kind in (None, "file", *ONLY_CARDS):  # those, where a card's rule means the CPU here
            return {}
        return {
            name: fitting_type(kind, weight.shape[-1])
            for weight in weights
            if len(weight.shape) > 1 and weight.type != fitting_type(kind, weight.shape[-1])
            if weight.type in PLAIN or not floats_only
            for name in weight.tensors
        }

    @staticmethod
    def as_types(weights: Iterable[WeightInfo], types: Mapping[str, str]) -> list[WeightInfo]:
        """The parameters with the types they are loaded as."""
        return [
            replace(w, type="+".join(dict.fromkeys(types.get(name, w.type) for name in w.tensors)))
            if any(name in types for name in w.tensors)
            else w
            for w in weights
        ]

    def choose_own(self, module: ModuleInfo, rule: Rule | None) -> tuple[OperatorSpec, str]:
        if rule is None:
            return self.registry.lookup("default", "torch"), "cpu"
        assert rule.backend is not None
        spec = self.registry.lookup(rule.operator, rule.backend)
        if spec.kind not in ("", module.kind):
            raise self.misfit(rule, module)
        if spec.backend != "cuda":
            return spec, "cpu"
        device = self.device_of(rule, rule.device or "cuda:0")
        return self.registry.lookup(spec.name, device.partition(":")[0]), device

    def choose(self, module: ModuleInfo, rule: Rule | None) -> tuple[OperatorSpec, str]:
        """Upstream's dialect: the class fixes the operator, device and op its backend."""
        kind = module.kind
        plain = self.registry.lookup("default", "torch")
        if rule is None:
            device = "cuda:0" if self.context.cuda_devices else "cpu"
        else:
            device = self.device_of(rule, dict(rule.asked).get("runs_on") or rule.device or "cpu")
            if self.registry.has(rule.operator, "torch") and rule.operator != "default":
                return self.registry.lookup(rule.operator, "torch"), device
            # Upstream's gates were torch.nn.Linear, so its rules for linears take them too.
            as_linear = rule.operator == "linear" and kind == "moe.router"
            if rule.operator not in ("default", kind) and not as_linear:
                raise self.misfit(rule, module)
            if rule.backend == "torch":
                return plain, device
        if not self.registry.backends(kind):
            return plain, device
        if device.startswith("cuda") and self.registry.has(kind, "cuda"):
            return self.registry.lookup(kind, "cuda"), device
        return self.registry.lookup(kind, "cpu"), "cpu"

    def follow_parts(self) -> list[str]:
        """Makes torch modules of operators that need a part which is one; one line says which."""
        parts: dict[str, list[PlanRow]] = {}
        for row in self.rows:
            owner = "rope" if row.kind == "rope" else row.module.rpartition(".")[0]
            parts.setdefault(owner, []).append(row)
        first, count = "", 0
        for index, row in enumerate(self.rows):
            needs = self.registry.lookup(row.operator, row.backend).needs
            below = [
                *parts.get(row.module, ()),
                *(parts.get("rope", ()) if "rope" in needs else ()),
            ]
            lost = [part for part in below if part.kind in needs and part.operator == "default"]
            if lost:
                first, count = first or f"{row.module}, because {lost[0].module} is", count + 1
                plain = self.registry.lookup("default", "torch")
                self.rows[index] = replace(
                    row, operator=plain.name, backend=plain.backend, options=plain.options()
                )
        if not count:
            return []
        what = f"{count} modules have" if count > 1 else "1 module has"
        return [f"{self.rules.path}: {what} to be plain torch, the first is {first}"]

    def device_of(self, rule: Rule, written: str) -> str:
        """The device of this machine that one named in a rule stands for. Raises RuleError."""
        base, _, number = written.partition(":")
        have = self.context.cuda_devices
        mapped = self.context.device_map.get(written, self.context.device_map.get(base))
        if mapped is None and base == "cuda":
            mapped = f"cuda:{int(number or 0)}"
            if have == 0:
                self.moved[written] = mapped = "cpu"
        elif mapped is None and written == "cpu":
            mapped = "cpu"
        if mapped is None:
            raise RuleError(
                rule.place,
                f"unknown device {written!r}; say what it means: --device-map {base}=cpu",
            )
        if mapped != "cpu" and int(mapped.partition(":")[2]) >= have:
            devices = "no CUDA device" if have == 0 else f"{have} CUDA device{'s' * (have > 1)}"
            raise RuleError(
                rule.place,
                f"{written} means {mapped}, but this machine has {devices}; say what to take "
                f"instead: --device-map {written}={'cuda:0' if have else 'cpu'}",
            )
        return mapped

    def device_notes(self) -> list[str]:
        if not self.moved:
            return []
        moved = ", ".join(sorted(self.moved))
        have = self.context.cuda_devices
        return [
            f"{self.rules.path}: {moved} means cpu here: this machine has "
            f"{have or 'no'} CUDA device{'s' if have > 1 else ''} "
            "(--device-map cuda=cpu says so without this line)"
        ]

    def unused_rules(self, tree: Sequence[ModuleInfo]) -> list[str]:
        """Lines about rules that took no module; in our dialect they are errors."""
        notes = []
        for index, rule in enumerate(self.rules.rules):
            if index in self.used or rule.optional:
                continue
            taken = self.taken_by(rule, index, tree)
            what = (
                f"every module it matches is taken by the rule at line {taken.place.line}"
                if taken
                else "matches no module of this model"
            )
            if self.own:
                raise RuleError(rule.place, f"{what}; if that is meant, add optional: true")
            notes.append(f"{rule.place.file}:{rule.place.line}: {what}")
        return notes

    def taken_by(self, rule: Rule, index: int, tree: Sequence[ModuleInfo]) -> Rule | None:
        """The earlier rule that takes the first module which `rule` would match."""
        for module in tree:
            if not module.name or not class_matches(rule, module):
                continue
            for name in (module.name, *module.aliases):
                if rule.match.names_match(name):
                    for earlier in self.rules.rules[:index]:
                        if class_matches(earlier, module) and earlier.match.names_match(name):
                            return earlier
        return None

    def misfit(self, rule: Rule, module: ModuleInfo) -> UserError:
        takes = f"which takes {module.kind}" if module.kind else "which holds other modules"
        return RuleError(
            rule.place,
            f"{rule.written} does not fit {module.name} ({module.class_name}, {takes}); "
            "narrow the match",
        )


def loaded_bytes(weight: WeightInfo, types: Mapping[str, str]) -> int:
    """Bytes of a parameter once loaded; its tensors share one type in `types`, or have none."""
    kind = next((types[name] for name in weight.tensors if name in types), None)
    return weight.nbytes if kind is None else type_bytes(kind, weight.float_bytes // 4)


def resident_share(
    rule: Rule | None, options: Any, weights: Iterable[WeightInfo], device: str
) -> float:
    """The part of a layer's experts that option `experts` puts on the GPU. Raises RuleError."""
    wanted = getattr(options, "experts", None)
    if wanted is None:
        return 1.0
    count = min((weight.shape[0] for weight in weights), default=0)
    if device == "cpu":
        if rule.backend == "cuda":  # mapped to the CPU
            return 1.0
        raise RuleError(rule.place, "option experts says how many are on a GPU; the backend is cpu")
    if wanted > count:
        raise RuleError(rule.place, f"option experts: {wanted} of {count} experts cannot be")
    return wanted / count


def class_matches(rule: Rule, module: ModuleInfo) -> bool:
    """Whether the module has one of the rule's classes; a rule without classes takes all."""
    classes = rule.match.classes
    return not classes or any(module.has_class(name, rule.match.legacy) for name in classes)


def _below(tree: Sequence[ModuleInfo], index: int) -> list[ModuleInfo]:
    """The modules under tree[index]: they follow it, as the tree is in pre-order."""
    prefix = tree[index].name + "."
    found = []
    for module in tree[index + 1 :]:
        if not module.name.startswith(prefix):
            break
        found.append(module)
    return found
