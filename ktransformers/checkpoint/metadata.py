"""Typed reading of GGUF metadata: every value is checked before anything is built from it.

A `gguf` here is anything with a `.metadata` mapping (key -> int, float, bool, str, list or numpy
array) and, for messages, a `.path`. Each function raises `UserError` with file, key and value.
"""

from __future__ import annotations

import math
from typing import Any

from ktransformers.errors import UserError

_MISSING = object()


def file_name(gguf: Any) -> str:
    """The file that messages name, as it was given; "GGUF metadata" for a bare mapping."""
    return str(getattr(gguf, "path", None) or "GGUF metadata")


def fail(gguf: Any, key: str, problem: str) -> UserError:
    """The one form of a metadata error: `file: key: problem`."""
    return UserError(f"{file_name(gguf)}: {key}: {problem}")


def shown(value: Any, limit: int = 60) -> str:
    """`value` for a message: one line of at most `limit` characters, whatever it is."""
    if isinstance(value, (str, bytes)):
        value = value[:limit]
    elif hasattr(value, "__len__") and len(value) > 4:
        return f"an array of {len(value)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _get(gguf: Any, key: str, default: Any) -> Any:
    value = gguf.metadata.get(key)
    if value is None:
        if default is _MISSING:
            raise fail(gguf, key, "missing from the metadata")
        return default
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def get_int(gguf: Any, key: str, lo: int = 0, hi: int = 2**31 - 1, default: Any = _MISSING) -> Any:
    """An integer in [lo, hi]; `default` (unchecked) when the key is absent."""
    value = _get(gguf, key, default)
    if value is default:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise fail(gguf, key, f"expected an integer, got {shown(value)}")
    if not lo <= value <= hi:
        raise fail(gguf, key, f"{value} is outside {lo}..{hi}")
    return value


def get_float(
    gguf: Any, key: str, lo: float = -math.inf, hi: float = math.inf, default: Any = _MISSING
) -> Any:
    """A finite number in [lo, hi]; integers are taken as numbers."""
    value = _get(gguf, key, default)
    if value is default:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise fail(gguf, key, f"expected a number, got {shown(value)}")
    if not math.isfinite(value) or not lo <= value <= hi:
        raise fail(gguf, key, f"{value} is outside {lo}..{hi}")
    return float(value)


def get_bool(gguf: Any, key: str, default: Any = _MISSING) -> Any:
    """A truth value."""
    value = _get(gguf, key, default)
    if value is not default and not isinstance(value, bool):
        raise fail(gguf, key, f"expected true or false, got {shown(value)}")
    return value


def get_str(gguf: Any, key: str, max_bytes: int = 1 << 20, default: Any = _MISSING) -> Any:
    """A string of at most `max_bytes` UTF-8 bytes."""
    value = _get(gguf, key, default)
    if value is default:
        return value
    if not isinstance(value, str):
        raise fail(gguf, key, f"expected a string, got {shown(value)}")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise fail(gguf, key, f"not valid UTF-8: {shown(value)}") from None
    if size > max_bytes:
        raise fail(gguf, key, f"{size} bytes, at most {max_bytes} are allowed")
    return value


def get_list(
    gguf: Any, key: str, kind: type, length: int | None = None, default: Any = _MISSING
) -> Any:
    """A list whose elements all are of `kind` (int, float or str); numpy arrays become lists.

    `length`, when given, must be met exactly.
    """
    value = _get(gguf, key, default)
    if value is default:
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise fail(gguf, key, f"expected an array, got {shown(value)}")
    if length is not None and len(value) != length:
        raise fail(gguf, key, f"{len(value)} elements, expected {length}")
    allowed = {int, float} if kind is float else {kind}
    if not set(map(type, value)) <= allowed:
        index = next(i for i, element in enumerate(value) if type(element) not in allowed)
        problem = f"element {index}: expected {kind.__name__}, got {shown(value[index])}"
        raise fail(gguf, key, problem)
    return list(value)
