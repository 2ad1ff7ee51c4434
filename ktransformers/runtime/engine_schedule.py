"""Who takes part in a step, and with how many rows. Pure: knows neither core nor threads.

Generated tokens come first: every running stream past its prompt gets its row in each step. Prompt
rows are added so that those streams keep at least `share` of the speed they would have alone. A
step with prompt rows costs far more than its rows' part of the arithmetic (nearly all experts are
read), so small pieces in every step would be the slowest way; instead a piece worth its cost is
taken, and the time it took beyond a plain step is owed to the streams that waited: until enough
plain steps were run, no further piece is taken. Times are those measured while serving.

Several prompts share a piece equally, so that a short one is not behind a long one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_ROWS = 16  # fewer rows than this cost as much as this many


@dataclass
class StepTimes:
    """Smoothed seconds of plain steps by number of rows, and of prompt pieces by their size."""

    plain: dict[int, float] = field(default_factory=dict)
    fixed: float = 0.0  # seconds of a piece beside its rows
    per_row: float = 0.0

    def of_plain(self, rows: int) -> float:
        """Expected seconds of a step of `rows` generated tokens; 0 while nothing is known."""
        if rows in self.plain or not self.plain:
            return self.plain.get(rows, 0.0)
        nearest = min(self.plain, key=lambda known: abs(known - rows))
        return self.plain[nearest]

    def saw_plain(self, rows: int, seconds: float) -> None:
        old = self.plain.get(rows)
        # A late core makes one step far too long; it should not be believed at once.
        if old is not None:
            seconds = old + 0.2 * (min(seconds, 3 * old) - old)
        self.plain[rows] = seconds

    def saw_piece(self, rows: int, seconds: float) -> None:
        per_row, old = max(seconds, 0.0) / rows, self.per_row
        self.per_row = per_row if not old else old + 0.3 * (per_row - old)


class Scheduler:
    """chunk: most prompt rows of a step. share: of their speed that streams keep beside a prompt.
    stall: seconds that a piece may hold up other streams."""

    def __init__(self, chunk: int, share: float = 0.5, stall: float = 0.5):
        self.chunk, self.share, self.stall = chunk, share, stall
        self.times = StepTimes()
        self.owed = 0.0  # seconds of plain steps before the next prompt piece

    def plan(self, decoding: int, prompts: Sequence[int]) -> list[int]:
        """Rows of each prompt in the next step; prompts: rows each has left, oldest first."""
        if not prompts or (decoding and self.owed > 0):
            return [0] * len(prompts)
        return shared_equally(self.budget(decoding), prompts)

    def budget(self, decoding: int) -> int:
        """Prompt rows that the next step may have."""
        if not decoding or not self.times.per_row:
            return self.chunk if not decoding else min(self.chunk, 128)
        rows = int(self.stall / self.times.per_row)
        return max(MIN_ROWS, min(self.chunk, rows))

    def ran(self, decoding: int, prompt_rows: int, seconds: float) -> None:
        """Tells what the step planned last took."""
        if not prompt_rows:
            self.times.saw_plain(decoding, seconds)
            self.owed = max(0.0, self.owed - seconds)
            return
        plain = min(self.times.of_plain(decoding) if decoding else 0.0, seconds)
        self.times.saw_piece(prompt_rows, seconds - plain)
        if decoding:
            owed = (seconds - plain) * self.share / (1 - self.share)
            self.owed = max(0.0, self.owed + owed - plain)
        else:
            self.owed = 0.0


def shared_equally(budget: int, wants: Sequence[int]) -> list[int]:
    """Splits `budget` so that nobody gets more than it wants, and what one leaves others share."""
    rows = [0] * len(wants)
    left = budget
    for place, index in enumerate(sorted(range(len(wants)), key=lambda i: wants[i])):
        rows[index] = min(wants[index], -(-left // (len(wants) - place)))
        left -= rows[index]
    return rows
