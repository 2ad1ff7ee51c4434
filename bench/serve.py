"""The server on a full-width model: one stream against the chat's own loop, several against
llama-server and the machine's limit, shared and long prompts beside others.

    python -m bench.serve                      every part, then plot and table
    python -m bench.serve --parts streams      one part; figures of others, measured before, stay
    python -m bench.serve --table              only prints what was measured

Parts: local (one stream, and `local_chat`'s loop on the same prompt), streams (8 at once, beside
llama-server's 8 slots in .venv-peers), users (the field's five users, a request a second), prefix
(2,000 tokens shared), long (8,000 tokens arrive while three generate). Figures: docs/serve.json,
plot: docs/serve.png. A part measures the machine's limits too, beside each figure.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench import cpu_models, limits, peers, report
from bench.cpu_work import work_of
from ktransformers.cli import bench_client as client
from ktransformers.cli.bench_serve import address_of, properties, started
from ktransformers.errors import UserError

JSON, PNG = report.ROOT / "docs" / "serve.json", report.ROOT / "docs" / "serve.png"
PARTS = ("local", "streams", "users", "prefix", "long")
LAYERS = {"long": 4, "users": 4}  # through 16 layers these take minutes
STREAMS, SHARED, LONG, OTHERS = 8, 2000, 8000, 3
PROMPT, TOKENS, LOCAL_ROUNDS = 128, 64, 9
MANY_TOKENS, ROUNDS = 128, 3  # of each of the streams; the first begin while others wait
FLAGS = ["--max_batch_size", str(STREAMS), "--cache_lens", "32768"]


@contextmanager
def llama_server(path: Path, threads: int) -> Iterator[str]:
    """Raises: UserError where .venv-peers or xllamacpp is missing."""
    if not peers.PYTHON.exists():
        raise UserError("llama-server is not installed: run `make peers`")
    job = {"model": str(path), "slots": STREAMS, "context": 512, "threads": threads}
    process = subprocess.Popen(
        [str(peers.PYTHON), str(Path(__file__).with_name("serve_peer.py")), json.dumps(job)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith('{"url"'):
                yield json.loads(line)["url"]
                return
        raise UserError("llama-server is not installed: run `make peers`")
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def model_of(part: str, layers: int) -> tuple[Path, dict]:
    family = cpu_models.qwen3(LAYERS.get(part, layers))
    return cpu_models.make(family, cpu_models.cache_folder()), family.config


def bound(path: Path, config: dict, rows: int, measured: dict) -> float:
    """Seconds that a step of `rows` generated tokens takes at least."""
    from ktransformers.checkpoint.gguf import open_model

    work = work_of(open_model(path).tensors.values(), config)
    read, int8 = 1e9 * measured["read_gbps"], 1e12 * measured["int8_tops"]
    return work.rows_seconds(rows, PROMPT / 2, read, int8)


def measure(part: str, path: Path, config: dict) -> dict:
    """The figures of one part. Raises: UserError."""
    measured = limits.measure()
    print(limits.line(measured), flush=True)
    found: dict = {"limits": measured, "layers": config["num_hidden_layers"]}
    if part == "local":
        return found | beside_local(path, config)
    with started(str(path), FLAGS) as url:
        vocab, ours = properties(url)["vocab_size"], client.Client(url)
        asyncio.run(client.one_stream(ours, vocab, 16, 8))
        if part == "streams":
            found |= beside_llama_server(ours, path, config, vocab)
        elif part == "users":
            found["users"] = asyncio.run(client.users(ours, vocab, 5, 1.0, 50, PROMPT, TOKENS))
        elif part == "prefix":
            found["prefix"] = asyncio.run(client.prefix(ours, vocab, SHARED))
        elif part == "long":
            found["long"] = asyncio.run(client.long_prompt(ours, vocab, OTHERS, LONG, 4000))
    return found


# What is compared takes turns, and of the rounds' ratios the median counts: neighbours of a virtual
# machine take of its memory's bandwidth for minutes, and so from one side more than from the other.


@contextmanager
def server_and_chat(path: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of bench.serve_beside's server, and its process. Raises: UserError."""
    command = [sys.executable, "-m", "bench.serve_beside", "--gguf_path", str(path), "--port", "0"]
    process = subprocess.Popen(
        [*command, *FLAGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=report.ROOT,
    )  # fmt: skip
    try:
        yield address_of(process), process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def beside_local(path: Path, config: dict) -> dict:
    """One stream and the chat's own loop, turn by turn in one process."""
    with server_and_chat(path) as (url, process):
        vocab, ours = properties(url)["vocab_size"], client.Client(url)

        def chat(seed: int) -> dict:
            process.stdin.write(json.dumps([seed, PROMPT, TOKENS]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        chat(0)
        rounds = []
        for turn in range(LOCAL_ROUNDS):
            one = asyncio.run(client.one_stream(ours, vocab, PROMPT, TOKENS, turn))
            local = chat(turn + 1)
            rounds.append({
                "one": one, "local": local,
                "of_local": one["tokens_per_second"] / local["tokens_per_second"],
                "first_overhead_seconds": one["first_seconds"] - local["prompt_seconds"],
            })  # fmt: skip
            print(f"  {one['tokens_per_second']:.1f} tokens/s, chat "
                  f"{local['tokens_per_second']:.1f}; first token {one['first_seconds']:.3f} s, "
                  f"chat {local['prompt_seconds']:.3f}", flush=True)  # fmt: skip
    names = ("of_local", "first_overhead_seconds")
    found = {name: median(each[name] for each in rounds) for name in names}
    return found | {"rounds": rounds, "bound_seconds": bound(path, config, 1, limits.measure())}


def beside_llama_server(ours: client.Client, path: Path, config: dict, vocab: int) -> dict:
    """Several streams, and as many of llama-server."""
    rounds = []
    with llama_server(path, limits.measure()["threads"]) as url:
        peer = client.Client(url)
        asyncio.run(client.one_stream(peer, vocab, 16, 8))
        for turn in range(ROUNDS):
            before = limits.measure()
            mine = asyncio.run(client.streams(ours, vocab, STREAMS, 32, MANY_TOKENS, turn))
            after = limits.measure()
            both = {key: (before[key] + after[key]) / 2 for key in ("read_gbps", "int8_tops")}
            at_least = bound(path, config, STREAMS, both)
            theirs = asyncio.run(client.streams(peer, vocab, STREAMS, 32, MANY_TOKENS, turn))
            rounds.append({
                "ours": mine, "llama-server": theirs, "bound_seconds": at_least,
                "step_over_bound": mine["step_seconds"] / at_least,
                "over_llama_server": mine["tokens_per_second"] / theirs["tokens_per_second"],
            })  # fmt: skip
            print(f"  {mine['tokens_per_second']:.1f} tokens/s, llama-server "
                  f"{theirs['tokens_per_second']:.1f}, limit {STREAMS / at_least:.1f}",
                  flush=True)  # fmt: skip
    names = ("step_over_bound", "over_llama_server")
    return {"rounds": rounds} | {name: median(each[name] for each in rounds) for name in names}


def middle(part: dict, ratio: str) -> dict:
    """The round whose ratio is the median."""
    return sorted(part["rounds"], key=lambda each: each[ratio])[len(part["rounds"]) // 2]


def rows(found: dict) -> list[list]:
    """[what, figure, bar, verdict] of all that was measured."""
    made = []

    def row(what: str, shown: str, bar: str = "", holds: bool | None = None):
        made.append([what, shown, bar, "" if holds is None else "ok" if holds else "missed"])

    if part := found.get("local"):
        turn = middle(part, "of_local")
        speed, local = turn["one"]["tokens_per_second"], turn["local"]["tokens_per_second"]
        row("one stream", f"{speed:.1f} tokens/s (chat {local:.1f})")
        row("  of the chat's own loop", f"{part['of_local']:.1%}",
            ">= 95 %", part["of_local"] >= 0.95)  # fmt: skip
        over = 1000 * part["first_overhead_seconds"]
        row("  first token - prompt time", f"{over:.0f} ms", "<= 25 ms", over <= 25)
    if part := found.get("streams"):
        turn = middle(part, "step_over_bound")
        ours, peer = turn["ours"], turn["llama-server"]
        row(f"{STREAMS} streams", f"{ours['tokens_per_second']:.1f} tokens/s "
            f"(llama-server {peer['tokens_per_second']:.1f})")  # fmt: skip
        row("  over llama-server", f"{part['over_llama_server']:.2f}", ">= 1.8",
            part["over_llama_server"] >= 1.8)  # fmt: skip
        row("  step / bound", f"{1000 * ours['step_seconds']:.0f} ms / "
            f"{1000 * turn['bound_seconds']:.0f} ms = {part['step_over_bound']:.2f}", "<= 1.5",
            part["step_over_bound"] <= 1.5)  # fmt: skip
    if part := found.get("users"):
        people = part["users"]
        row(f"5 users, 1 request/s x 50 ({part['layers']} layers)",
            f"{people['total_tokens_per_second']:.1f} tokens/s, each "
            f"{people['user_tokens_per_second']['mean']:.1f}, first token "
            f"{people['first_seconds']['median']:.1f} s")  # fmt: skip
    if part := found.get("prefix"):
        shared = part["prefix"]
        row(f"first token, {SHARED} tokens shared", f"{shared['cold_seconds']:.2f} s -> "
            f"{shared['warm_seconds']:.3f} s = {shared['warm_over_cold']:.1%}", "<= 10 %",
            shared["warm_over_cold"] <= 0.1)  # fmt: skip
    if part := found.get("long"):
        long = part["long"]
        kept = long["kept"]["min"] if long["kept"] else None
        row(f"{LONG} tokens arrive ({part['layers']} layers)",
            f"others keep {kept:.0%}" if kept is not None else "the others ended first",
            ">= 40 %", bool(kept and kept >= 0.4))  # fmt: skip
        if gap := long["longest_gap_seconds"]:
            row("  first token; longest gap", f"{long['first_seconds']:.1f} s; {gap:.2f} s")
    return made


def plot(found: dict, path: Path) -> None:
    """Tokens/s of one and of several streams, with the machine's limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars: list[tuple[str, float, str]] = []
    if part := found.get("local"):
        turn = middle(part, "of_local")
        bars.append(("chat, 1", turn["local"]["tokens_per_second"], "tab:gray"))
        bars.append(("server, 1", turn["one"]["tokens_per_second"], "tab:blue"))
        bars.append(("limit, 1", 1 / part["bound_seconds"], "lightgray"))
    if part := found.get("streams"):
        part = middle(part, "step_over_bound")
        bars.append((f"server, {STREAMS}", part["ours"]["tokens_per_second"], "tab:blue"))
        bars.append(
            (f"llama-server, {STREAMS}", part["llama-server"]["tokens_per_second"], "tab:orange")
        )
        bars.append((f"limit, {STREAMS}", STREAMS / part["bound_seconds"], "lightgray"))
    figure, axes = pyplot.subplots(figsize=(8, 4))
    drawn = axes.bar([b[0] for b in bars], [b[1] for b in bars], color=[b[2] for b in bars])
    axes.bar_label(drawn, fmt="%.1f", fontsize=8)
    axes.set_ylabel("tokens/s, all streams")
    axes.set_title("Serving Qwen3-30B-A3B's widths", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(argv)
    found = json.loads(JSON.read_text())["parts"] if JSON.exists() else {}
    print(report.header())
    try:
        for part in () if options.table else options.parts.split(","):
            if part not in PARTS:
                raise UserError(f"--parts {part}: choose from {', '.join(PARTS)}")
            path, config = model_of(part, options.layers)
            found[part] = measure(part, path, config) | {"commit": report.commit()}
            JSON.write_text(
                json.dumps({"machine": report.machine(), "parts": found}, indent=1) + "\n"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.table(["work", "figure", "bar", "verdict"], rows(found)))
    if found:
        try:
            plot(found, PNG)
        except ImportError:
            print("no plot: pip install 'ktransformers[bench]' brings matplotlib")
    return 0


if __name__ == "__main__":
    sys.exit(main())
