"""Bounded types that the requests of all APIs are made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = Annotated[str, Field(min_length=1, max_length=256)]
TEXT = Annotated[str, Field(max_length=8 << 20)]
SHORT = Annotated[str, Field(max_length=4096)]


def finite(low: float, high: float) -> Any:
    return Annotated[float, Field(ge=low, le=high, allow_inf_nan=False)]


COUNT = Annotated[int, Field(ge=0, le=2**31 - 1)]
POSITIVE = Annotated[int, Field(ge=1, le=2**31 - 1)]
SEED = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
STOP_TEXT = Annotated[str, Field(min_length=1, max_length=1024)]
STOPS = STOP_TEXT | Annotated[list[STOP_TEXT], Field(max_length=16)]
TOP_P = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
BIAS_KEY = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
BIASES = Annotated[dict[BIAS_KEY, finite(-100, 100)], Field(max_length=1024)]


def not_too_deep(value: Any, depth: int = 64) -> Any:
    """JSON of a bounded depth: what walks it later must not run out of stack."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"nested deeper than {depth} levels")


OBJECT = Annotated[dict[str, Any], AfterValidator(not_too_deep)]


class Body(BaseModel):
    """A request: fields nobody knows are refused by name, unless they are null."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = set(cls.model_fields)
        known |= {f.alias for f in cls.model_fields.values() if f.alias}
        return {key: value for key, value in data.items() if key in known or value is not None}


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]
    description: TEXT | None = None
    parameters: OBJECT | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: Function

    def plain(self) -> dict[str, Any]:
        """As templates read it."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function | {"parameters": parameters}}


TOOLS = Annotated[list[Tool], Field(max_length=128)]


def stop_texts(stops: str | list[str] | None) -> tuple[str, ...]:
    return () if stops is None else (stops,) if isinstance(stops, str) else tuple(stops)


def seed_of(seed: int | None) -> int | None:
    """Any whole number as one the sampler takes."""
    return None if seed is None else seed % (1 << 62)


def plain_call(number: int, given_id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    """A call of a tool as templates read it; `number`: its place in the message."""
    return {
        "id": given_id or f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
