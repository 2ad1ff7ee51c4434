"""A command line read the way python-fire reads it: upstream's users have such flags in scripts.

Accepted for a flag `cpu_infer`:

    --cpu_infer 8    --cpu_infer=8    -cpu_infer 8    -cpu_infer=8

each also with dashes for underscores. A switch stands alone (`--force_think`), is denied
(`--noforce_think`) or takes a word (`--force_think False`). A single letter is the one flag that
starts with it. What is no flag fills the flags in their order. "-3" is a value. `None` unsets.

Unlike fire, every value is checked against its flag's kind, and a wrong one is named in one line.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ktransformers.errors import UserError

TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


@dataclass(frozen=True)
class Flag:
    """One flag: name with underscores, kind (str, int, float or bool), default, help line."""

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    check: Callable[[Any], bool] | None = None
    wants: str = ""  # what `check` asks for, e.g. "at least 1"
    aliases: tuple[str, ...] = ()
    has_initial: bool = True  # -g may mean --gguf_path; a later flag must not take that away


def is_flag(word: str) -> bool:
    return bool(re.match(r"--|-[A-Za-z]", word)) and word != "--"


def convert(flag: Flag, text: str) -> Any:
    """The flag's value for a word of the command line; UserError names flag, word and wish."""
    if text == "None" and flag.default is None:
        return None
    try:
        if flag.kind is bool:
            if text.lower() in TRUE | FALSE:
                return text.lower() in TRUE
            raise ValueError
        value = flag.kind(text)
        if flag.kind is float and not math.isfinite(value):
            raise ValueError
    except ValueError:
        wish = {bool: "True or False", int: "a whole number", float: "a number"}[flag.kind]
        raise UserError(f"--{flag.name} {text}: must be {wish}") from None
    if flag.choices and value not in flag.choices:
        raise UserError(f"--{flag.name} {text}: must be one of {', '.join(flag.choices)}")
    if flag.check and not flag.check(value):
        raise UserError(f"--{flag.name} {text}: must be {flag.wants}")
    return value


class Parser:
    """Flags of one command, in the order in which bare words fill them."""

    def __init__(self, flags: Sequence[Flag]):
        self.flags = list(flags)
        self.by_name = {name: flag for flag in flags for name in (flag.name, *flag.aliases)}

    def find(self, word: str) -> Flag:
        """The flag a name means; raises UserError with the nearest known one."""
        name = word.replace("-", "_")
        if name in self.by_name:
            return self.by_name[name]
        if len(name) == 1:
            starts = [f for f in self.flags if f.has_initial and f.name.startswith(name)]
            if len(starts) == 1:
                return starts[0]
            if starts:
                raise UserError(f"-{name} could be {', '.join('--' + f.name for f in starts)}")
        near = difflib.get_close_matches(name, self.by_name, n=1)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise UserError(f"unknown flag --{name}; {hint}--help lists them")

    def denied(self, word: str) -> Flag | None:
        """The switch that `noNAME` or `no_NAME` turns off, if the word is one."""
        name = word.replace("-", "_")
        if name in self.by_name or not name.startswith("no"):
            return None
        flag = self.by_name.get(name[2:].lstrip("_"))
        return flag if flag and flag.kind is bool else None

    def parse(self, words: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
        """Values of all flags by name, and the names that were given. Raises UserError."""
        given: dict[str, Any] = {}
        bare: list[str] = []
        index = 0
        while index < len(words):
            word = words[index]
            index += 1
            if word == "--":  # fire's own flags follow; none of them means anything here
                continue
            if not is_flag(word):
                bare.append(word)
                continue
            name, equals, value = word.lstrip("-").partition("=")
            if not equals and (flag := self.denied(name)):
                given[flag.name] = False
                continue
            flag = self.find(name)
            if not equals:
                if index < len(words) and not is_flag(words[index]) and words[index] != "--":
                    value = words[index]
                    index += 1
                elif flag.kind is bool:
                    value = "True"
                else:
                    raise UserError(f"--{flag.name} needs a value")
            given[flag.name] = convert(flag, value)
        empty = [flag for flag in self.flags if flag.name not in given]
        if len(bare) > len(empty):
            raise UserError(f"cannot place the word {bare[len(empty)]!r}; --help lists the flags")
        for flag, word in zip(empty, bare, strict=False):
            given[flag.name] = convert(flag, word)
        return {flag.name: given.get(flag.name, flag.default) for flag in self.flags}, set(given)

    def help(self, usage: str) -> str:
        """The text of --help: the usage line, then one line per flag."""
        width = max(len(flag.name) for flag in self.flags) + 4
        lines = [usage, ""]
        for flag in self.flags:
            default = "" if flag.default in (None, "") else f" (default {flag.default})"
            lines.append(f"  --{flag.name}".ljust(width) + f"  {flag.help}{default}")
        return "\n".join(lines)


def asks_for_help(words: Sequence[str]) -> bool:
    return any(word in ("--help", "-help", "-h") for word in words)
