"""Tokens to text as a generation streams it: whole characters, stop strings cut off."""

from __future__ import annotations

from typing import Any

from ktransformers.checkpoint.stream_decoder import StreamDecoder


class StopFinder:
    """Finds the first of several texts in a stream, holding back what may be the beginning of one.

    What `push` and `finish` gave, joined, contains no stop text, nor part of the one found.
    """

    def __init__(self, stops: tuple[str, ...] = ()):
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """The text that is certain to stay; after a stop text was found, nothing more."""
        if not self._stops:
            return piece
        if self.found is not None:
            return ""
        text = self._held + piece
        places = [(text.find(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if places:
            at, _, self.found = min(places)
            self._held = ""
            return text[:at]
        keep = max(map(lambda stop: _overlap(text, stop), self._stops))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, at the end of a text that did not stop."""
        text, self._held = self._held, ""
        return "" if self.found is not None else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class TextOut:
    """One generation's text: push(id) while it runs, finish() at its end."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...], keep: frozenset[str] = frozenset()):
        self._decoder = StreamDecoder(tokenizer, keep=keep)
        self._stops = StopFinder(stops)

    @property
    def stopped(self) -> str | None:
        """The stop text that was found."""
        return self._stops.found

    def push(self, token: int) -> str:
        return self._stops.push(self._decoder.push(token))

    def finish(self) -> str:
        if self.stopped is not None:
            return ""
        return self._stops.push(self._decoder.finish()) + self._stops.finish()
