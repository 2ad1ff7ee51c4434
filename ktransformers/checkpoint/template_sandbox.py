"""Chat templates in Jinja's immutable sandbox, with what transformers offers them, and no more.

Imports nothing but jinja2 and the standard library: this runs in the server's small helper process.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARS = 4 << 20


class TemplateProblem(Exception):
    """One line: why a template gave no text."""


class GenerationTag(Extension):
    """{% generation %}...{% endgeneration %} marks an answer for training; here it is shown."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

    @staticmethod
    def _shown(caller: Any) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace() without names that begin with an underscore."""

    def __init__(*args: Any, **names: Any):
        self, *rest = args
        given = dict(*rest, **names)
        for name in given:
            _checked(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        jinja2.utils.Namespace.__setitem__(self, _checked(name), value)


def _checked(name: Any) -> Any:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace: {name!r} begins with an underscore")
    return name


def raise_exception(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators=None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def compiled(source: str) -> jinja2.Template:
    """Raises: TemplateProblem for what is no Jinja."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols],
        optimized=False,  # constants are worked out while rendering, where time is bounded
    )  # fmt: skip
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["namespace"] = Namespace
    try:
        return environment.from_string(source)
    except Exception as error:  # a template is a stranger's program
        raise TemplateProblem(one_line(error)) from error


def rendered(template: jinja2.Template, values: dict[str, Any]) -> str:
    """The template's text. Raises: TemplateProblem when it refuses, fails, or says too much."""
    parts: list[str] = []
    size = 0
    try:
        for part in template.generate(**values):
            parts.append(part)
            size += len(part)
            if size > MAX_RENDERED_CHARS:
                raise TemplateProblem(f"gave more than {MAX_RENDERED_CHARS} characters")
    except TemplateProblem:
        raise
    except (Exception, RecursionError, MemoryError) as error:
        raise TemplateProblem(one_line(error)) from error
    return "".join(parts)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
