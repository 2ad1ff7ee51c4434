"""Name patterns of rule files: regular expressions that cannot hang the program.

Upstream's files use look-ahead, so a linear-time engine will not do; the `regex` package searches
like Python's `re` and takes a time limit.
"""

import re
import time

import regex

MAX_LENGTH = 1024
SECONDS_PER_PATTERN = 1.0  # for all names together; an honest pattern needs milliseconds


class PatternError(ValueError):
    """The pattern is too long, malformed or too slow; the text says which."""


class NamePattern:
    """`search` on dotted module names, unanchored as `re.search` is."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise PatternError(f"the pattern has {len(text)} characters, the limit is {MAX_LENGTH}")
        try:
            re.compile(text)  # what `re` cannot read meant something else to upstream, or nothing
            self._compiled = regex.compile(text)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise PatternError(f"bad pattern {text!r}: {error}") from None
        self.text = text
        self._seconds_left = SECONDS_PER_PATTERN

    def search(self, name: str) -> bool:
        """True if the pattern occurs in `name`. Raises PatternError past the time limit."""
        start = time.monotonic()
        try:
            return self._compiled.search(name, timeout=max(self._seconds_left, 1e-3)) is not None
        except TimeoutError:
            raise PatternError(
                f"pattern {self.text!r} needs more than {SECONDS_PER_PATTERN:g} s; simplify it"
            ) from None
        finally:
            self._seconds_left -= time.monotonic() - start

    def __repr__(self) -> str:
        return f"NamePattern({self.text!r})"
