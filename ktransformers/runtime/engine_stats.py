"""What the engine counts, for /metrics and for saying when to try again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts of seconds by upper bound, as Prometheus has them."""

    def __init__(self, bounds: tuple[float, ...] = BUCKETS):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value


@dataclass
class EngineStats:
    """Totals since the start. Written by the engine's thread, read by any."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    evaluated: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    refused: int = 0
    preempted: int = 0
    finish: dict[str, int] = field(default_factory=dict)
    queue_seconds: Histogram = field(default_factory=Histogram)
    first_token_seconds: Histogram = field(default_factory=Histogram)
    token_seconds: Histogram = field(default_factory=Histogram)
    request_seconds: float = 0.0  # smoothed, of one request's evaluation

    def step(self, plain: int, prompt_rows: int, seconds: float) -> None:
        self.steps += 1
        self.step_seconds += seconds
        self.evaluated += prompt_rows

    def admitted(self, one: Any) -> None:
        self.requests += 1
        self.prompt_tokens += one.stream.prompt_length
        self.cached_tokens += one.cached_tokens
        self.queue_seconds.add(one.times.admitted - one.times.queued)

    def first_token(self, one: Any) -> None:
        self.first_token_seconds.add(one.times.first_token - one.times.queued)

    def finished(self, one: Any) -> None:
        times = one.times
        self.finish[one.finish] = self.finish.get(one.finish, 0) + 1
        if one.produced > 1:
            self.token_seconds.add((times.finished - times.first_token) / (one.produced - 1))
        if times.admitted:
            seconds = times.finished - times.admitted
            old = self.request_seconds
            self.request_seconds = seconds if not old else old + 0.2 * (seconds - old)

    def retry_after(self, queued: int) -> int:
        """Seconds after which a place in the queue is likely, 1 to 60."""
        return int(min(60, max(1, self.request_seconds)))
