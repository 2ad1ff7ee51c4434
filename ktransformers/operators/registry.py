"""Operators by name and backend; upstream's class and op names are aliases of the same entries.

    @register("linear", backend="cpu", upstream=("ktransformers.operators.linear.KTransformersLinear",))
    class Linear(Operator): ...

    register("linear", backend="cpu", factory="ktransformers.operators.linear:Linear")

The second form names the class without importing it. catalog.py registers everything that ships
that way, so that rules are checked before torch is imported.
"""  # noqa: E501

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class NoOptions:
    """Options of an operator that has none."""


# What `quant` may say: "file" keeps the type weights are stored in, "auto" does so for GGUF files
# and quantises the floats of a Hugging Face folder to the best type that fits the memory.
Quant = Literal["auto", "file", "bf16", "f16", "q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "q3_k",
                "q2_k", "iq4_xs", "iq4_nl", "mxfp4", "int4", "int4g32", "int4g64",
                "int4g128"]  # fmt: skip


@dataclass(frozen=True)
class WeightOptions:
    """quant: the type an operator's matrices are loaded as."""

    quant: Quant = "auto"


@dataclass(frozen=True)
class ExpertOptions(WeightOptions):
    """experts: how many of a layer's experts are on the GPU, the others on the CPU; None: all.
    profile: file of `ktransformers calibrate` that says which are the hottest; else the first."""

    experts: int | None = None
    profile: str | None = None

    def __post_init__(self) -> None:
        if self.experts is not None and self.experts < 1:
            raise ValueError(f"option experts must be at least 1, not {self.experts}")


@dataclass(frozen=True)
class LatentOptions:
    """absorb_prompts: long prompts too in the absorbed form, which is slower than expanding."""

    absorb_prompts: bool = False


@dataclass(frozen=True)
class Kwargs:
    """Options of an operator somebody wrote: (name, value) pairs, checked by its constructor."""

    values: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class OperatorSpec:
    """One operator on one backend.

    kind: the kind of module it stands in for (`ModuleInfo.kind`); "" fits every module.
    options: frozen dataclass that the rule's `options` are checked against.
    factory: the class itself, or "module:Class" to import it on first use; "" where no module is
        replaced (`model` says how the layers are run, `default` leaves transformers' module).
    resident: what stays in memory of a weight: the "file" bytes, or "float32" values.
    needs: kinds of modules, its children or the model's rotary embedding, without whose operators
        it cannot run; where one of them is a torch module it has to be one too.
    """

    name: str
    backend: str
    kind: str
    options: type
    factory: str | Callable[..., Any]
    resident: Literal["file", "float32"] = "file"
    needs: tuple[str, ...] = ()

    @property
    def is_plugin(self) -> bool:
        """Whether the class is a BaseInjectedModule from outside of this package."""
        return self.options is Kwargs

    def load(self) -> Callable[..., Any]:
        """The operator class; imports its module (and torch) if need be."""
        if isinstance(self.factory, str):
            module, _, name = self.factory.partition(":")
            return getattr(importlib.import_module(module), name)
        return self.factory


@dataclass(frozen=True)
class UpstreamOp:
    """An upstream op name (`generate_op: KLinearMarlin`): for which operator, on which backend.

    backend None: whatever serves the device best; the op only chose among upstream's kernels.
    """

    operator: str
    backend: str | None = None


class Registry:
    """The tables; one instance for the program, others in tests."""

    def __init__(self) -> None:
        self._specs: dict[tuple[str, str], OperatorSpec] = {}
        self._upstream_classes: dict[str, str | None] = {}
        self._upstream_ops: dict[str, UpstreamOp] = {}

    def register(
        self,
        name: str,
        *,
        backend: str,
        kind: str | None = None,
        options: type = NoOptions,
        upstream: Iterable[str] = (),
        resident: Literal["file", "float32"] = "file",
        needs: tuple[str, ...] = (),
        factory: str | None = None,
    ) -> Callable[[Any], Any]:
        """Registers `factory`, or, used as a decorator, the class below it (and returns it).

        Raises ValueError when the operator has that backend already or an alias is taken.
        """

        def add(made: Any) -> Any:
            if (name, backend) in self._specs:
                raise ValueError(f"operator {name} is registered twice for backend {backend}")
            spec = OperatorSpec(
                name, backend, name if kind is None else kind, options, made, resident, needs
            )
            self._specs[name, backend] = spec
            for alias in upstream:
                self.alias_class(alias, name)
            return made

        return add if factory is None else add(factory)

    def register_plugin(self, name: str, cls: type) -> None:
        """A class from outside, under its full name in both dialects; the last definition counts.

        It replaces a module of any kind and runs in torch, its own parameters as float32.
        """
        self._specs[name, "torch"] = OperatorSpec(name, "torch", "", Kwargs, cls, "float32")
        self._upstream_classes[name] = name

    def alias_class(self, upstream: str, operator: str | None) -> None:
        """`replace.class: upstream` means `operator`; None: known, but nothing here does it."""
        if upstream in self._upstream_classes:
            raise ValueError(f"upstream class {upstream} has two operators")
        self._upstream_classes[upstream] = operator

    def alias_op(self, upstream: str, op: UpstreamOp) -> None:
        """`generate_op: upstream` means `op`."""
        if upstream in self._upstream_ops:
            raise ValueError(f"upstream op {upstream} is named twice")
        self._upstream_ops[upstream] = op

    def names(self) -> tuple[str, ...]:
        """Operator names in the order of registration."""
        return tuple(dict.fromkeys(name for name, _ in self._specs))

    def backends(self, name: str) -> tuple[str, ...]:
        """The backends of an operator, the preferred one first; empty if it is unknown."""
        return tuple(backend for known, backend in self._specs if known == name)

    def lookup(self, name: str, backend: str) -> OperatorSpec:
        """Raises KeyError when there is no such operator or it lacks that backend."""
        return self._specs[name, backend]

    def has(self, name: str, backend: str) -> bool:
        return (name, backend) in self._specs

    def upstream_class(self, name: str) -> str | None:
        """The operator behind an upstream class. Raises KeyError when the name is unknown."""
        return self._upstream_classes[name]

    def upstream_classes(self) -> tuple[str, ...]:
        return tuple(self._upstream_classes)

    def upstream_op(self, name: str) -> UpstreamOp:
        """Raises KeyError when the name is unknown."""
        return self._upstream_ops[name]

    def upstream_ops(self, operator: str) -> tuple[str, ...]:
        """The upstream op names an operator may be given."""
        return tuple(name for name, op in self._upstream_ops.items() if op.operator == operator)


REGISTRY = Registry()
register = REGISTRY.register


def operators() -> Registry:
    """The registry with everything that ships in it."""
    importlib.import_module("ktransformers.operators.catalog")
    return REGISTRY


def lookup(name: str, backend: str) -> OperatorSpec:
    """The shipped (or registered) operator. Raises KeyError."""
    return operators().lookup(name, backend)
