"""A light client for measuring servers: OpenAI text completion, streamed, over plain sockets.

It counts tokens by what the server says (usage) and takes the time of every event. Prompts are
random ids, so that every server evaluates the same number of tokens.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ktransformers.errors import UserError


@dataclass
class Answered:
    """One request's times on time.perf_counter's clock. stamps: of each event with text."""

    begun: float
    stamps: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finished: float = 0.0
    status: int = 200
    refusal: str = ""

    @property
    def first(self) -> float:
        """Seconds until the first token."""
        return self.stamps[0] - self.begun

    @property
    def speed(self) -> float:
        """Tokens a second after the first."""
        spent = self.stamps[-1] - self.stamps[0]
        return (self.tokens - 1) / spent if spent > 0 else 0.0


class Client:
    """url: of a server with /v1/completions. Raises: UserError where none answers."""

    def __init__(self, url: str, model: str = "default", api_key: str | None = None):
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise UserError(f"--url {url}: an address like http://127.0.0.1:10002 is needed")
        self.host, self.port = parts.hostname, parts.port or 80
        self.model, self.api_key = model, api_key

    async def complete(self, prompt: Sequence[int], tokens: int, **options) -> Answered:
        """Streams one answer of exactly `tokens` tokens; a refusal has its status."""
        body = {
            "model": self.model, "prompt": list(prompt), "max_tokens": tokens, "stream": True,
            "temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True},
        } | options  # fmt: skip
        data = json.dumps(body).encode()
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            "Connection: close\r\n\r\n"
        )
        answered = Answered(time.perf_counter())
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        except OSError as error:
            raise UserError(f"http://{self.host}:{self.port}: {error.strerror}") from None
        try:
            writer.write(head.encode() + data)
            await writer.drain()
            answered.status = int((await reader.readline()).split()[1])
            if answered.status != 200:
                answered.refusal = (await reader.read()).split(b"\r\n\r\n")[-1].decode()
            while (line := await reader.readline()) != b"":
                if line.startswith(b"data: {"):
                    take(answered, json.loads(line[6:]))
                elif line.startswith(b"data: [DONE]"):
                    break
        finally:
            writer.close()
        answered.finished = time.perf_counter()
        return answered


def take(answered: Answered, chunk: dict) -> None:
    """Notes what one event says."""
    if chunk.get("choices"):
        answered.stamps.append(time.perf_counter())
    if usage := chunk.get("usage"):
        answered.tokens = usage["completion_tokens"]
        answered.prompt_tokens = usage["prompt_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        answered.cached_tokens = details.get("cached_tokens") or 0


def must(answered: Answered) -> Answered:
    """Raises: UserError for an answer that did not come."""
    if answered.status != 200 or not answered.stamps:
        said = " ".join(answered.refusal.split())[:300] or "no tokens"
        raise UserError(f"the server did not answer ({answered.status}): {said}")
    return answered


def ids(count: int, seed: int, vocabulary: int) -> list[int]:
    """A prompt of random ids, away from the special ones at both ends."""
    rng = random.Random(seed)
    high = max(300, min(vocabulary - 300, 30000))
    return [rng.randrange(200, high) for _ in range(count)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, 95th percentile and extremes."""
    ordered = sorted(values)
    return {
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "min": ordered[0],
        "max": ordered[-1],
    }


# ---- the measurements; each -> a dict of figures ----


async def one_stream(
    client: Client, vocabulary: int, prompt: int, tokens: int, turn: int = 0
) -> dict:
    """One user: time to the first token and decode speed, after an answer as warm-up. Each turn has
    prompts of its own, which no cache holds."""
    await client.complete(ids(prompt, 2000 + 2 * turn, vocabulary), 4)
    got = must(await client.complete(ids(prompt, 2001 + 2 * turn, vocabulary), tokens))
    return {"prompt_tokens": prompt, "first_seconds": got.first, "tokens_per_second": got.speed}


async def streams(
    client: Client, vocabulary: int, count: int, prompt: int, tokens: int, turn: int = 0
) -> dict:
    """`count` users at once, different prompts: speed of each and of all while all generate."""
    first = 10_000 + turn * count
    got = await asyncio.gather(
        *(client.complete(ids(prompt, first + n, vocabulary), tokens) for n in range(count))
    )
    for one in got:
        must(one)
    begin, end = max(g.stamps[0] for g in got), min(g.stamps[-1] for g in got)
    events = sum(sum(begin < s <= end for s in g.stamps) for g in got)
    # Servers may put several tokens into one event.
    per_event = sum(g.tokens for g in got) / sum(len(g.stamps) for g in got)
    total = events * per_event / (end - begin) if end > begin else 0.0
    return {
        "streams": count,
        "tokens_per_second": total,
        "per_stream": spread([g.speed for g in got]),
        "step_seconds": count / total if total else None,
        "whole_seconds": max(g.finished for g in got) - min(g.begun for g in got),
        "whole_tokens_per_second": sum(g.tokens for g in got)
        / (max(g.finished for g in got) - min(g.begun for g in got)),
    }


async def users(
    client: Client,
    vocabulary: int,
    people: int,
    rate: float,
    requests: int,
    prompt: int,
    tokens: int,
) -> dict:
    """`requests` arrive `rate` a second; `people` of them are answered at a time, others wait."""
    places = asyncio.Semaphore(people)
    begin = time.perf_counter()
    rng = random.Random(7)

    async def one(number: int):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        arrived = time.perf_counter()
        async with places:
            length = max(8, int(prompt * rng.uniform(0.5, 1.5)))
            got = await client.complete(ids(length, 1000 + number, vocabulary), tokens)
        return arrived, got

    done = await asyncio.gather(*(one(number) for number in range(requests)))
    for _, got in done:
        if got.status != 429:  # a refusal for want of room is an answer too, and counted
            must(got)
    good = [(arrived, got) for arrived, got in done if got.status == 200 and got.stamps]
    span = max(got.finished for _, got in good) - begin
    return {
        "users": people,
        "requests": requests,
        "rate": rate,
        "answered": len(good),
        "total_tokens_per_second": sum(got.tokens for _, got in good) / span,
        "prompt_tokens_per_second": sum(got.prompt_tokens for _, got in good) / span,
        "user_tokens_per_second": spread([got.speed for _, got in good]),
        "first_seconds": spread([got.stamps[0] - arrived for arrived, got in good]),
        "seconds": span,
    }


async def prefix(client: Client, vocabulary: int, shared: int) -> dict:
    """A prompt whose beginning was evaluated before: time to the first token, cold and warm."""
    beginning = ids(shared, 5, vocabulary)
    cold = must(await client.complete(beginning + ids(20, 6, vocabulary), 2))
    warm = must(await client.complete(beginning + ids(20, 7, vocabulary), 2))
    return {
        "shared_tokens": shared,
        "cold_seconds": cold.first,
        "warm_seconds": warm.first,
        "warm_over_cold": warm.first / cold.first,
        "cached_tokens": warm.cached_tokens,
    }


async def long_prompt(
    client: Client, vocabulary: int, others: int, length: int, tokens: int
) -> dict:
    """A long prompt arrives while others generate: what of their speed they keep meanwhile."""
    running = [
        asyncio.ensure_future(client.complete(ids(32, 300 + n, vocabulary), tokens))
        for n in range(others)
    ]
    await asyncio.sleep(3.0)  # all generate; the last two seconds tell their speed alone
    arrived = time.perf_counter()
    got = must(await client.complete(ids(length, 400, vocabulary), 2))
    first = got.stamps[0]
    done = [must(one) for one in await asyncio.gather(*running)]
    kept = []
    outlasted = all(one.stamps[-1] >= first for one in done)
    for one in done if outlasted else ():
        before = sum(arrived - 2.0 < s <= arrived for s in one.stamps) / 2.0
        end = min(first, one.stamps[-1])
        during = sum(arrived < s <= end for s in one.stamps) / max(end - arrived, 1e-9)
        kept.append(during / before if before else 0.0)
    gaps = [
        b - a
        for one in done
        for a, b in zip(one.stamps, one.stamps[1:], strict=False)
        if arrived < b <= first
    ]
    return {
        "others": others,
        "prompt_tokens": length,
        "first_seconds": first - arrived,
        "kept": spread(kept) if outlasted else None,
        "longest_gap_seconds": max(gaps, default=None),
        "outlasted": outlasted,
    }
