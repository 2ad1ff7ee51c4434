"""`ktransformers bench serve` on a miniature: its figures add up. Shell completion."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ktransformers.cli.bench_client import Client, one_stream, spread
from ktransformers.errors import UserError
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]
SMALL = """--users 2 --rate 50 --requests 5 --streams 3 --prompt_tokens 16 --max_tokens 40
--shared_tokens 300 --long_tokens 400 --long_answers 8""".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "mini.gguf"
    write(miniature("qwen3moe", types="Q8_0"), path)
    return str(path)


def bench(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ktransformers", "bench", "serve", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_every_figure_is_measured_and_kept(model, tmp_path):
    kept = tmp_path / "figures.json"
    done = bench("--gguf_path", model, *SMALL, "--json", str(kept))
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())["results"]["ktransformers"]
    one = found["one"]
    assert one["prompt_tokens"] == 16 and one["local"]["tokens_per_second"] > 0
    # A model this small may put a whole answer into one event, whose speed counts as 0.
    assert one["of_local"] == one["tokens_per_second"] / one["local"]["tokens_per_second"]
    many, people = found["streams"], found["users"]
    assert many["streams"] == 3 and many["whole_tokens_per_second"] > 0
    assert people["answered"] == people["requests"] == 5
    assert people["total_tokens_per_second"] == pytest.approx(5 * 40 / people["seconds"])
    assert found["prefix"]["cached_tokens"] == 256
    assert found["long"]["prompt_tokens"] == 400
    for word in ("one stream", "3 streams, all", "2 users, 50 request/s x 5", "each user"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "either --gguf_path (a server is started) or --url"),
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
        (["--url", "ftp://x"], "an address like http://127.0.0.1:10002"),
        (["--url", "http://127.0.0.1:9", "--parts", "one,two"], "--parts two"),
        (["--gguf_path", "/nowhere/x"], "the server did not start: /nowhere/x: no such file"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(words, message):
    done = bench(*words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_a_refusal_is_told():
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_error(429, "busy")

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Client(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match=r"did not answer \(429\): .*busy"):
            asyncio.run(one_stream(client, 1000, 5, 5))
        server.shutdown()


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"mean": 2, "median": 2, "p95": 3, "min": 1, "max": 3}


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("", {"serve", "chat", "run", "plan", "inspect", "bench", "doctor"}),
        ("serve --log_level d", {"debug"}),
        ("chat --gguf", {"--gguf_path"}),
        ("bench serve --us", {"--users"}),
    ],
)
def test_a_shell_completes_words(typed, offered):
    line = f"ktransformers {typed}"
    environment = {
        "_KTRANSFORMERS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ktransformers.cli.main"], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    for word in offered:
        assert word in re.findall(r"[\w-]+", done.stdout), done.stdout
