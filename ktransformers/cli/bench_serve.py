"""`ktransformers bench serve`: a server's speed for one user, for several, beside long prompts.

Measures a server it starts for a model, or one that runs (--url); beside it other servers with the
OpenAI API (--peer NAME=URL), one measurement after the other. Prints a table; --json and --png keep
the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ktransformers.cli import bench_client as client
from ktransformers.errors import UserError

LOCAL = """
import json, sys
from ktransformers.cli.bench_serve import chat_speed
from ktransformers.runtime.session import load_model
path, prompt, tokens, vocabulary, flags = json.loads(sys.argv[1])
model = load_model(path, **flags)
chat_speed(model, 1, prompt, 4, vocabulary)  # as warm-up
print(json.dumps(chat_speed(model, 2, prompt, tokens, vocabulary)))
"""


def chat_speed(
    model: Any, seed: int, prompt: int, tokens: int, vocabulary: int
) -> dict[str, float]:
    """The chat's own loop on a prompt of random ids: {prompt_seconds, tokens_per_second}."""
    from ktransformers.runtime.session import ChatSession, SamplingOptions

    session = ChatSession(model)
    session.append(client.ids(prompt, seed, vocabulary))
    list(session.generate(SamplingOptions(max_new_tokens=tokens)))
    stats = session.stats
    return {
        "prompt_seconds": stats.prompt_seconds,
        "tokens_per_second": stats.eval_count / stats.eval_seconds,
    }


@contextmanager
def started(model: str, words: list[str]) -> Iterator[str]:
    """The address of a server of our own for a model. Raises: UserError where it does not start."""
    command = [sys.executable, "-m", "ktransformers.cli.main", "serve", "--gguf_path", model]
    process = subprocess.Popen(
        [*command, "--port", "0", *words], stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        yield address_of(process)
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def address_of(process: subprocess.Popen) -> str:
    """Where a server just started says it is. Raises: UserError with its last words."""
    said = ""
    for line in process.stderr:
        said = line.strip()
        if match := re.search(r"serving .* at (http\S+)", line):
            return match[1]
    raise UserError(f"the server did not start: {said.removeprefix('error: ')}")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def local_speed(model: str, prompt: int, tokens: int, vocabulary: int, flags: dict) -> dict:
    """The chat's own loop on the same model and prompt, in a process of its own."""
    task = json.dumps([model, prompt, tokens, vocabulary, flags])
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, task], capture_output=True, text=True, env=environment()
    )
    if done.returncode != 0:
        raise UserError(f"the model's own loop failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def properties(url: str, api_key: str | None = None) -> dict[str, Any]:
    """A server's /props; empty where it has none that says the vocabulary."""
    request = urllib.request.Request(url + "/props")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)
    except (OSError, ValueError):
        return {}


PARTS = ("one", "streams", "users", "prefix", "long")


def measure(
    url: str, vocabulary: int, options: dict[str, Any], api_key: str | None = None
) -> dict[str, dict]:
    """All figures of one server, by part."""
    one = client.Client(url, "default" if "model" not in options else options["model"], api_key)
    prompt, tokens = options["prompt_tokens"], options["max_tokens"]
    found: dict[str, dict] = {}

    async def run() -> None:
        for part in options["parts"]:
            began = time.perf_counter()
            if part == "one":
                found[part] = await client.one_stream(one, vocabulary, prompt, tokens)
            elif part == "streams":
                found[part] = await client.streams(one, vocabulary, options["streams"], 32, tokens)
            elif part == "users":
                found[part] = await client.users(
                    one, vocabulary, options["users"], options["rate"], options["requests"],
                    prompt, tokens,
                )  # fmt: skip
            elif part == "prefix":
                found[part] = await client.prefix(one, vocabulary, options["shared_tokens"])
            elif part == "long":
                found[part] = await client.long_prompt(
                    one, vocabulary, 3, options["long_tokens"], options["long_answers"]
                )
            note = f"{part}: {time.perf_counter() - began:.1f} s"
            print(note, file=sys.stderr, flush=True)

    asyncio.run(run())
    return found


def rows(name: str, found: dict[str, dict]) -> list[tuple[str, str, str]]:
    """(server, what, figure) lines of the table."""
    made = []
    if one := found.get("one"):
        made.append(("one stream", f"{one['tokens_per_second']:.1f} tokens/s"))
        made.append((f"  first token of {one['prompt_tokens']}", f"{one['first_seconds']:.3f} s"))
        if local := one.get("local"):
            made.append(("  of the chat's own loop", f"{one['of_local']:.1%}"))
            made.append(("  first token - prompt", f"{1000 * one['first_overhead']:.0f} ms"))
            made.append(("  chat's own loop", f"{local['tokens_per_second']:.1f} tokens/s"))
    if many := found.get("streams"):
        made.append(
            (f"{many['streams']} streams, all", f"{many['tokens_per_second']:.1f} tokens/s")
        )
        made.append(("  each", f"{many['per_stream']['mean']:.1f} tokens/s"))
    if people := found.get("users"):
        made.append((
            f"{people['users']} users, {people['rate']:g} request/s x {people['requests']}",
            f"{people['total_tokens_per_second']:.1f} tokens/s",
        ))  # fmt: skip
        each, first = people["user_tokens_per_second"], people["first_seconds"]
        made.append(("  each user", f"{each['mean']:.1f} tokens/s (least {each['min']:.1f})"))
        made.append(("  first token", f"{first['median']:.2f} s (95 %: {first['p95']:.2f})"))
    if shared := found.get("prefix"):
        made.append((
            f"shared prompt of {shared['shared_tokens']}",
            f"{shared['cold_seconds']:.3f} -> {shared['warm_seconds']:.3f} s "
            f"({shared['warm_over_cold']:.1%})",
        ))  # fmt: skip
    if long := found.get("long"):
        kept = "the others ended first: raise --long_answers"
        if long["outlasted"]:
            kept = f"{long['kept']['min']:.0%} of their speed kept by {long['others']}"
        made.append((f"beside a prompt of {long['prompt_tokens']}", kept))
        made.append(("  first token", f"{long['first_seconds']:.1f} s"))
        if long["longest_gap_seconds"]:
            made.append(("  others' longest gap", f"{long['longest_gap_seconds']:.2f} s"))
    return [(name, what, figure) for what, figure in made]


def with_local(found: dict[str, dict], model: str, vocabulary: int, options: dict) -> None:
    """Adds the chat's own loop to the figures of one stream."""
    one = found["one"]
    one["local"] = local_speed(
        model, options["prompt_tokens"], options["max_tokens"], vocabulary, options["load"]
    )
    one["of_local"] = one["tokens_per_second"] / one["local"]["tokens_per_second"]
    one["first_overhead"] = one["first_seconds"] - one["local"]["prompt_seconds"]


def print_table(lines: list[tuple[str, str, str]]) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    for name, what, figure in lines:
        print(f"{name.ljust(widths[0])}  {what.ljust(widths[1])}  {figure.rjust(widths[2])}")


def plot(results: dict[str, dict[str, dict]], path: str) -> None:
    """Bars of speeds, all servers beside one another. Raises: UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("--png needs matplotlib: pip install 'ktransformers[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = {
        "one stream": ("one", lambda part: part["tokens_per_second"]),
        "streams, all": ("streams", lambda part: part["tokens_per_second"]),
        "users, all": ("users", lambda part: part["total_tokens_per_second"]),
        "users, each": ("users", lambda part: part["user_tokens_per_second"]["mean"]),
    }
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    width = 0.8 / len(results)
    for number, (name, found) in enumerate(results.items()):
        shown = [(i, read(found[p])) for i, (p, read) in enumerate(figures.values()) if p in found]
        bars = axes.bar(
            [i + number * width for i, _ in shown], [v for _, v in shown], width, label=name
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(figures))], list(figures))
    axes.set_ylabel("tokens/s")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def run(
    gguf_path: str | None,
    url: str | None,
    peers: list[str],
    options: dict[str, Any],
    serve_words: list[str],
    json_path: str | None,
    png_path: str | None,
    api_key: str | None = None,
) -> dict[str, dict[str, dict]]:
    """Measures, prints, keeps. Raises: UserError."""
    unknown = [part for part in options["parts"] if part not in PARTS]
    if unknown:
        raise UserError(f"--parts {unknown[0]}: choose from {', '.join(PARTS)}")
    if bool(gguf_path) == bool(url):
        raise UserError("either --gguf_path (a server is started) or --url (one that runs)")
    named = dict(peer.partition("=")[::2] for peer in peers)
    results: dict[str, dict[str, dict]] = {}
    if gguf_path:
        with started(gguf_path, serve_words) as address:
            vocabulary = properties(address)["vocab_size"]
            results["ktransformers"] = measure(address, vocabulary, options)
        if "one" in options["parts"] and options["compare_local"]:
            with_local(results["ktransformers"], gguf_path, vocabulary, options)
    else:
        vocabulary = properties(url, api_key).get("vocab_size", 32000)
        results["server"] = measure(url, vocabulary, options, api_key)
    for name, address in named.items():
        results[name] = measure(address, vocabulary, options)
    print_table([line for name, found in results.items() for line in rows(name, found)])
    if json_path:
        Path(json_path).write_text(json.dumps({"options": options, "results": results}, indent=1))
    if png_path:
        plot(results, png_path)
    return results
