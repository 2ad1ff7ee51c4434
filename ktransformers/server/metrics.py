"""/metrics: what the engine counted, in Prometheus' text format."""

from __future__ import annotations

import time

from ktransformers.runtime.engine_stats import Histogram
from ktransformers.server.service import Service

PREFIX = "ktransformers_"


def exposition(service: Service) -> str:
    """All metrics, one family after another."""
    engine = service.engine
    stats, pool = engine.stats, engine.pool
    lines: list[str] = []

    def family(name: str, kind: str, text: str, *samples: tuple[str, float]) -> None:
        lines.append(f"# HELP {PREFIX}{name} {text}")
        lines.append(f"# TYPE {PREFIX}{name} {kind}")
        lines.extend(f"{PREFIX}{name}{labels} {value:g}" for labels, value in samples)

    def counter(name: str, text: str, value: float) -> None:
        family(name, "counter", text, ("", value))

    def gauge(name: str, text: str, value: float) -> None:
        family(name, "gauge", text, ("", value))

    counter("requests_total", "Generations begun.", stats.requests)
    counter("requests_refused_total", "Generations the full queue refused.", stats.refused)
    counter("preemptions_total", "Generations sent back for want of cache pages.", stats.preempted)
    family(
        "finished_total", "counter", "Generations ended, by reason.",
        *((f'{{reason="{why}"}}', count) for why, count in sorted(stats.finish.items())),
    )  # fmt: skip
    counter("prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens)
    counter("prompt_tokens_cached_total", "Prompt tokens from the cache.", stats.cached_tokens)
    counter("prompt_tokens_evaluated_total", "Tokens of prompts evaluated.", stats.evaluated)
    counter("generated_tokens_total", "Tokens generated.", stats.generated)
    counter("steps_total", "Steps of the decoder.", stats.steps)
    counter("step_seconds_total", "Seconds spent in steps.", stats.step_seconds)
    gauge("requests_running", "Generations in the batch.", len(engine.running))
    gauge("requests_waiting", "Generations in the queue.", engine.queued)
    gauge("cache_pages", "Pages the cache may hold.", pool.page_limit)
    gauge("cache_pages_used", "Pages in use.", pool.pages_in_use)
    gauge(
        "cache_pages_kept",
        "Pages kept for prompts to come.",
        engine.cache.pages if engine.cache else 0,
    )
    gauge("uptime_seconds", "Seconds since the start.", time.time() - service.started)

    def histogram(name: str, text: str, data: Histogram) -> None:
        lines.append(f"# HELP {PREFIX}{name} {text}")
        lines.append(f"# TYPE {PREFIX}{name} histogram")
        total = 0
        for bound, count in zip((*data.bounds, "+Inf"), list(data.counts), strict=True):
            total += count
            lines.append(f'{PREFIX}{name}_bucket{{le="{bound}"}} {total}')
        lines.append(f"{PREFIX}{name}_sum {data.total:g}")
        lines.append(f"{PREFIX}{name}_count {total}")

    histogram("queue_seconds", "Seconds in the queue.", stats.queue_seconds)
    histogram("first_token_seconds", "Seconds until the first token.", stats.first_token_seconds)
    histogram("token_seconds", "Mean seconds between tokens of a generation.", stats.token_seconds)
    return "\n".join(lines) + "\n"
