"""An answer as it streams, taken apart: thinking, text, tool calls.

The parser is fed pieces cut anywhere and never says what it might have to take back: the end of a
piece that could be the beginning of a mark is held until it is clear. What came in is handed out
whole: a block that reads as no call comes out as the text it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ktransformers.server.dialects import Call, Dialect, read_json

LARGEST_BLOCK = 1 << 20  # characters of a block of calls; a longer one is shown as text


@dataclass
class Part:
    """What a piece brought: more thinking, more text, whole calls."""

    thinking: str = ""
    text: str = ""
    calls: list[Call] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.thinking or self.text or self.calls)


class AnswerParser:
    """dialect: None looks for nothing but thinking. tools: names that may be called; empty: calls
    are not looked for. in_thinking: the prompt ended inside of thinking. forced: the whole
    answer is calls written as JSON, as the grammar made it."""

    def __init__(
        self,
        dialect: Dialect,
        tools: frozenset[str] = frozenset(),
        in_thinking: bool = False,
        forced: bool = False,
    ):
        self._dialect, self._tools, self._forced = dialect, tools, forced
        self._state = "thinking" if in_thinking else "begin"
        self._held = ""
        self._close: str | None = None
        self._opening = ""
        self._trim = in_thinking  # blanks at the beginning of a part are not the model's words
        self._pending_blank = ""

    def push(self, piece: str) -> Part:
        """What is certain so far."""
        self._held += piece
        part = Part()
        while self._advance(part, last=False):
            pass
        return part

    def finish(self) -> Part:
        """The rest, at the end of the answer."""
        part = Part()
        while self._advance(part, last=True):
            pass
        return part

    # Each state takes from the held text what it can; True where another look may bring more.

    def _advance(self, part: Part, last: bool) -> bool:
        return getattr(self, f"_in_{self._state}")(part, last)

    def _in_begin(self, part: Part, last: bool) -> bool:
        """Before the first word: thinking may open, or the answer may be one bare call."""
        stripped = self._held.lstrip()
        opening = self._dialect.think[0]
        if not last and (not stripped or (opening.startswith(stripped) and stripped != opening)):
            return False
        if stripped.startswith(opening):
            self._held = stripped[len(opening) :]
            self._state, self._trim = "thinking", True
        elif self._forced:
            self._state, self._opening, self._close = "block", "", None
        elif self._dialect.bare and self._tools and stripped[:1] in ("{", "["):
            self._state, self._opening, self._close = "block", "", None
        else:
            self._state = "text"
        return True

    def _in_thinking(self, part: Part, last: bool) -> bool:
        close = self._dialect.think[1]
        text, found = self._until([close], last)
        part.thinking += self._trimmed(text, before_end=found is not None or last)
        if found is None:
            return False
        self._pending_blank = ""
        self._state, self._trim = "after", True
        return True

    def _in_after(self, part: Part, last: bool) -> bool:
        """Blank lines between thinking and answer belong to neither."""
        self._held = self._held.lstrip()
        if not self._held and not last:
            return False
        self._trim, self._state = False, "text"
        if self._forced or (self._dialect.bare and self._tools and self._held[:1] in ("{", "[")):
            self._state, self._opening, self._close = "block", "", None
        return True

    def _in_text(self, part: Part, last: bool) -> bool:
        openings = [opening for opening, _ in self._dialect.tools] if self._tools else []
        text, found = self._until(openings, last)
        part.text += self._blank_kept(text, found is None and last)
        if found is None:
            return False
        self._close = dict(self._dialect.tools)[found]
        self._opening, self._state = found, "block"
        return True

    def _in_block(self, part: Part, last: bool) -> bool:
        body, close = self._held, self._close
        at = body.find(close) if close else -1
        if at < 0 and not last:
            if len(body) <= LARGEST_BLOCK:
                return False
            self._give_up(part, body)
            return True
        rest = "" if at < 0 else body[at + len(close) :]
        body = body if at < 0 else body[:at]
        try:
            read = read_json if not self._opening else self._dialect.read
            calls = read(body)
            if (
                not self._forced
                and not self._opening
                and any(c[0] not in self._tools for c in calls)
            ):
                raise ValueError("no tool of that name")
        except (ValueError, RecursionError):
            closed = "" if at < 0 else close
            self._held = rest
            part.text += self._blank_kept(self._opening + body + closed, last and not rest)
            self._state = "text"
            return bool(rest)
        self._pending_blank = ""
        part.calls += calls
        self._held, self._state = rest, "text"
        return bool(rest)

    def _give_up(self, part: Part, body: str) -> None:
        part.text += self._blank_kept(self._opening + body, False)
        self._held, self._state = "", "text"

    def _until(self, marks: list[str], last: bool) -> tuple[str, str | None]:
        """Held text up to the first mark, which is taken away too; else what cannot begin one."""
        places = [(self._held.find(mark), mark) for mark in marks if mark in self._held]
        if places:
            at, mark = min(places)
            text, self._held = self._held[:at], self._held[at + len(mark) :]
            return text, mark
        keep = 0 if last else max((_overlap(self._held, mark) for mark in marks), default=0)
        end = len(self._held) - keep
        text, self._held = self._held[:end], self._held[end:]
        return text, None

    def _trimmed(self, text: str, before_end: bool) -> str:
        """Thinking without the blanks that stand before and after it."""
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        text = self._pending_blank + text
        kept = text.rstrip()
        self._pending_blank = "" if before_end else text[len(kept) :]
        return kept

    def _blank_kept(self, text: str, at_end: bool) -> str:
        """Blank lines before a call are the dialect's, not the answer's: held until it is clear."""
        if not self._tools:
            return text
        text = self._pending_blank + text
        kept = text if at_end else text.rstrip()
        self._pending_blank = text[len(kept) :]
        return kept


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


def in_thinking(prompt: str, dialect: Dialect) -> bool:
    """Whether a rendered prompt leaves the model inside of thinking."""
    opening, close = dialect.think
    return prompt.rfind(opening) > prompt.rfind(close) and prompt.rstrip().endswith(opening)


def whole(parser: AnswerParser, text: str) -> Part:
    """All of an answer at once."""
    part, rest = parser.push(text), parser.finish()
    return Part(part.thinking + rest.thinking, part.text + rest.text, part.calls + rest.calls)
