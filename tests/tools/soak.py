"""Many clients of every kind at once, then thousands of requests: a server must come through.

    python -m tests.tools.soak [--minutes 10] [--requests 10000] [--clients 64] [--model FILE]

First `clients` clients, for `minutes`: some read at once, some a byte at a time, some go away in
the middle or before the first token, some send rubbish, too much, or half of a request. Meanwhile
/health is asked ten times a second. Then `requests` ordinary requests (after a thousand to warm
up), with the resident memory taken along the way.

Fails (exit status 1) unless: the server lives and its log has no traceback; every answer is one
that was deliberate (200, 400, 408, 413, 415, 429, or 503 with Retry-After); p99 of /health is at
most 200 ms; memory grows by at most 1 KiB a request; pages and descriptors are back where they
were. Moments at which this very program was not run (stopped, or the machine busy elsewhere) are
left out of /health's figures, and counted.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.families import families
from tests.support.miniatures import miniature, write
from tests.support.serving import Server

DELIBERATE = {200, 400, 408, 413, 415, 429}
LATE = 0.05  # seconds after which a timer of ours tells that this program was not run
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Place:
    """Where the server is, and what its answers were."""

    def __init__(self, server: Server):
        parts = urlsplit(server.url)
        self.host, self.port, self.pid = parts.hostname, parts.port, server.process.pid
        self.statuses: Counter = Counter()
        self.problems: list[str] = []

    async def open(self):
        return await asyncio.open_connection(self.host, self.port)

    def head(self, path: str, length: int, method: str = "POST") -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Length: {length}"
            "\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        ).encode()

    def note(self, reply: bytes, kind: str) -> int | None:
        """Counts an answer's status; None where the connection ended without one."""
        if not reply.startswith(b"HTTP/1.1 "):
            self.statuses[f"{kind}: none"] += 1
            return None
        status = int(reply[9:12])
        self.statuses[status] += 1
        retry = b"retry-after:" in reply.split(b"\r\n\r\n")[0].lower()
        if status not in DELIBERATE and not (status == 503 and retry):
            self.problems.append(f"{kind}: {reply[:200]!r}")
        if status == 429 and not retry:
            self.problems.append(f"{kind}: 429 without Retry-After")
        return status

    def resident_kib(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_KIB

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def asked(rng: random.Random) -> tuple[str, dict]:
    """A request of some API, of random length."""
    words = " ".join(rng.choice(["one", "two", "three", "four"]) for _ in range(rng.randint(1, 60)))
    messages, tokens = [{"role": "user", "content": words}], rng.randint(1, 60)
    flow = rng.random() < 0.7
    return rng.choice([
        ("/v1/completions", {"prompt": words, "max_tokens": tokens, "stream": flow,
                             "logprobs": rng.choice([None, 3])}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "stream": flow,
                                  "seed": rng.randint(0, 9)}),
        ("/v1/messages", {"model": "default", "messages": messages, "max_tokens": tokens,
                          "stream": flow}),
        ("/api/chat", {"model": "default", "messages": messages, "stream": flow,
                       "options": {"num_predict": tokens}}),
    ])  # fmt: skip


RUBBISH = [b"{", b"\xff\xfe", b'{"prompt": ' + b"[" * 5000, b'{"prompt": "\\ud800", "n": 1e999}']


async def one(place: Place, rng: random.Random) -> None:
    """One visit of one client."""
    kind = rng.choices(["reads", "slow", "leaves", "rubbish", "huge", "half", "gone"],
                       [8, 2, 4, 2, 1, 1, 1])[0]  # fmt: skip
    path, body = asked(rng)
    data = json.dumps(body).encode()
    reader, writer = await place.open()
    try:
        if kind == "rubbish":
            data = rng.choice(RUBBISH)
        if kind == "huge":
            writer.write(place.head(path, 9 << 20) + b" " * 100000)
        elif kind == "half":
            writer.write(place.head(path, len(data)) + data[: len(data) // 2])
            await writer.drain()
            await asyncio.sleep(rng.uniform(0, 2))
            return
        else:
            writer.write(place.head(path, len(data)) + data)
        await writer.drain()
        if kind == "gone":
            return
        if kind == "leaves":
            await asyncio.sleep(rng.uniform(0, 0.5))
            place.note(await reader.read(rng.randint(13, 3000)) or b"", kind)
            return
        if kind == "slow":
            reply = await reader.read(1000)
            for _ in range(rng.randint(1, 20)):
                await asyncio.sleep(0.5)
                if not await reader.read(1):
                    break
            place.note(reply, kind)
            return
        place.note(await asyncio.wait_for(reader.read(-1), 600), kind)
    except (ConnectionError, asyncio.IncompleteReadError):
        place.statuses[f"{kind}: cut"] += 1
        if kind not in ("huge", "leaves", "gone"):
            place.problems.append(f"{kind}: the connection was cut")
    finally:
        writer.close()


async def visits(place: Place, clients: int, seconds: float, seed: int) -> None:
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(1000 * seed + number)
        while time.monotonic() < end:
            await one(place, rng)
            await asyncio.sleep(rng.uniform(0, 0.05))

    await asyncio.gather(*(client(number) for number in range(clients)))


async def health(place: Place, over: asyncio.Event) -> tuple[list[float], int]:
    """(seconds of each answer, how many were left out)."""
    times, left_out = [], 0
    while not over.is_set():
        due = time.monotonic() + 0.1
        watch, late = asyncio.ensure_future(lateness()), False
        began = time.monotonic()
        reader, writer = await place.open()
        writer.write(place.head("/health", 0, "GET"))
        reply = await reader.read(-1)
        seconds = time.monotonic() - began
        writer.close()
        watch.cancel()
        late = (await asyncio.gather(watch, return_exceptions=True))[0] is True
        if place.note(reply, "health") != 200:
            place.problems.append(f"health: {reply[:100]!r}")
        if late:
            left_out += 1
        else:
            times.append(seconds)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    return times, left_out


async def lateness() -> bool:
    """Ends with True once a timer of ours comes much too late."""
    while True:
        due = time.monotonic() + 0.005
        await asyncio.sleep(0.005)
        if time.monotonic() - due > LATE:
            return True


async def requests(place: Place, count: int, clients: int) -> list[tuple[int, int]]:
    """Ordinary short requests -> (how many were answered, resident KiB) along the way."""
    samples, done, began = [], 0, iter(range(count))

    async def client(number: int) -> None:
        nonlocal done
        for turn in began:
            rng = random.Random(turn)
            path, body = asked(rng)
            body["options" if path == "/api/chat" else "max_tokens"] = (
                {"num_predict": 4} if path == "/api/chat" else 4
            )
            data = json.dumps(body).encode()
            reader, writer = await place.open()
            writer.write(place.head(path, len(data)) + data)
            place.note(await reader.read(-1), "ordinary")
            writer.close()
            done += 1
            if done % 100 == 0:
                samples.append((done, place.resident_kib()))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return samples


def slope(samples: list[tuple[int, int]]) -> float:
    """KiB per request, by least squares."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


async def soak(server: Server, options) -> dict:
    place, over = Place(server), asyncio.Event()
    await requests(place, 50, 4)
    before = place.descriptors()
    watch = asyncio.ensure_future(health(place, over))
    await visits(place, options.clients, 60 * options.minutes, options.seed)
    over.set()
    times, left_out = await watch
    print(f"visits: {dict(place.statuses)}", flush=True)
    await asyncio.to_thread(server.until_idle, 60)
    await requests(place, min(1000, options.requests), 16)
    samples = await requests(place, options.requests, 16)
    live = await asyncio.to_thread(server.until_idle, 60)
    await asyncio.sleep(1)
    times.sort()
    return {
        "clients": options.clients, "minutes": options.minutes, "requests": options.requests,
        "statuses": {str(key): value for key, value in place.statuses.items()},
        "health_count": len(times), "health_left_out": left_out,
        "health_p50_ms": 1000 * times[len(times) // 2],
        "health_p99_ms": 1000 * times[int(0.99 * (len(times) - 1))],
        "memory_kib_first": samples[0][1], "memory_kib_last": samples[-1][1],
        "memory_kib_per_request": slope(samples),
        "descriptors_before": before, "descriptors_after": place.descriptors(),
        "pages_used_beyond_kept": live["cache_pages_used"] - live["cache_pages_kept"],
        "problems": place.problems,
    }  # fmt: skip


def verdict(found: dict, log: str, alive: bool) -> list[str]:
    """What is off."""
    wrong = [f"answer {problem}" for problem in found["problems"][:10]]
    if not alive or "Traceback" in log:
        wrong.append(f"the server {'' if alive else 'ended, '}logged: {log[-2000:]}")
    if found["health_p99_ms"] > 200:
        wrong.append(f"p99 of /health is {found['health_p99_ms']:.0f} ms, more than 200")
    if found["memory_kib_per_request"] > 1:
        wrong.append(f"memory grows by {found['memory_kib_per_request']:.2f} KiB a request")
    if found["descriptors_after"] > found["descriptors_before"]:
        wrong.append("descriptors were not closed")
    if found["pages_used_beyond_kept"]:
        wrong.append("pages of the cache were lost")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--model", type=Path, help="else a miniature of random weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file the figures are written to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            model = Path(folder) / "mini.gguf"
            family = families()["qwen3moe"]
            family.config["max_position_embeddings"] = 4096
            write(miniature(family, types="Q8_0"), model)
        flags = ("--model_name", "default", "--cache_lens", "8192", "--max_queue", "32")
        with Server(model, *flags) as server:
            found = asyncio.run(soak(server, options))
            alive = server.process.poll() is None
            wrong = verdict(found, server.log, alive)
    for name, value in found.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    for problem in wrong:
        print(f"FAILED: {problem}")
    if options.json:
        options.json.write_text(json.dumps(found | {"failed": wrong}, indent=1) + "\n")
    print("soak:", "failed" if wrong else "passed")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
