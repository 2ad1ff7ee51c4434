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
FIRST_ROWS = 128  # of a piece beside other streams, while nothing is known of its time


@dataclass
class StepTimes:
    """Smoothed seconds of plain steps by number of rows, and of prompt pieces by size, of which
    those within a factor of two are taken together."""

    plain: dict[int, float] = field(default_factory=dict)
    pieces: dict[int, tuple[float, float]] = field(default_factory=dict)  # (rows, seconds)

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
        size = rows.bit_length()
        count, mean = self.pieces.get(size, (rows, seconds))
        self.pieces[size] = (count + 0.3 * (rows - count), mean + 0.3 * (seconds - mean))

    def line(self) -> tuple[float, float] | None:
        """(seconds a piece costs beside its rows, seconds per row); None for want of two sizes."""
        if len(self.pieces) < 2:
            return None
        points = list(self.pieces.values())
        mean_rows = sum(rows for rows, _ in points) / len(points)
        mean_seconds = sum(seconds for _, seconds in points) / len(points)
        spread = sum((rows - mean_rows) ** 2 for rows, _ in points)
        joint = sum((r - mean_rows) * (s - mean_seconds) for r, s in points)
        per_row = max(joint / spread, 1e-6) if spread else 1e-6
        return max(0.0, mean_seconds - per_row * mean_rows), per_row


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
        """Prompt rows that the next step may have: as many as `stall` allows, but enough that no
        more than half of the time goes into what a piece costs beside its rows."""
        if not decoding:
            return self.chunk
        if (line := self.times.line()) is not None:
            fixed, per_row = line
            rows = int(max((self.stall - fixed) / per_row, fixed / per_row))
        elif self.times.pieces:  # a second size is needed to tell fixed cost from cost per row
            ((known, seconds),) = self.times.pieces.values()
            rows = int(known * 2 if seconds < self.stall else known / 2)
        else:
            rows = FIRST_ROWS
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
