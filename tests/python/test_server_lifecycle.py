"""How a server ends: Ctrl-C during a stream, SIGTERM, kill -9; what it says when it is full."""

import json
import os
import random
import signal
import socket
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from ktransformers.runtime.engine_request import Busy
from ktransformers.server.errors import ApiError, response_for
from ktransformers.server.service import Service
from tests.support.families import families
from tests.support.miniatures import miniature, write
from tests.support.serving import Server, free_port, offspring

BODY = {"prompt": "hello", "max_tokens": 5000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mini.gguf"
    family = families()["qwen3"]
    family.config["max_position_embeddings"] = 32768
    write(miniature(family, types="Q8_0"), path)
    return path


@pytest.fixture(scope="module")
def small(model):
    """A server that answers one request and lets one wait."""
    flags = ("--cache_lens", "20000", "--max_batch_size", "1", "--max_queue", "1")
    with Server(model, *flags) as server:
        yield server
        assert server.end(signal.SIGTERM) == 0
        assert "Traceback" not in server.log, server.log


class Streaming:
    """A stream that is read in a thread until it ends."""

    def __init__(self, server):
        place = urlsplit(server.url)
        self.link = HTTPConnection(place.hostname, place.port, timeout=30)
        body = json.dumps(BODY | {"stream": True})
        self.link.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        self.reply = self.link.getresponse()
        self.lines: list[bytes] = [self.reply.readline()]
        self.ended = threading.Event()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        try:
            while line := self.reply.readline():
                self.lines.append(line)
        except (OSError, ValueError):
            pass
        self.ended.set()


def test_ctrl_c_during_streams_ends_all_within_two_seconds(model):
    with Server(model, "--cache_lens", "20000") as server:
        streams = [Streaming(server) for _ in range(3)]
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130
        assert time.monotonic() - began < 2.0
        for one in streams:
            assert one.ended.wait(5)
            told = b"".join(one.lines)
            assert b"the server ended this generation" in told or b"[DONE]" not in told
    assert "Traceback" not in server.log, server.log
    assert not offspring(server), "the template helper outlived its server"


def test_ctrl_c_while_a_model_loads_is_130_too(model):
    with Server(model, wait=False) as server:
        maps, end = Path(f"/proc/{server.process.pid}/maps"), time.monotonic() + 60
        while "libtorch" not in maps.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130
    assert "Traceback" not in server.log, server.log


def test_kill_9_leaves_nothing_that_hinders_the_next_start(model):
    """Twice here; tests/tools/kill_restart.py does it at 200 random moments."""
    rng, port, told = random.Random(3), free_port(), set()
    for turn in range(2):
        with Server(model, "--port", str(port), "--cache_lens", "20000") as server:
            told.add(server.json("/v1/completions", BODY | {"max_tokens": 8})["choices"][0]["text"])
            stream = Streaming(server)
            time.sleep(rng.uniform(0, 0.2))
            server.process.kill()
            server.process.wait(10)
            assert stream.ended.wait(5), turn
        end = time.monotonic() + 5
        while offspring(server) and time.monotonic() < end:
            time.sleep(0.05)
        assert not offspring(server), "the template helper outlived its server"
    assert len(told) == 1, "a later start says something else"


def test_a_full_server_says_when_to_come_again(small):
    streams = [Streaming(small)]
    place = urlsplit(small.url)
    waiting = HTTPConnection(place.hostname, place.port)
    waiting.request("POST", "/v1/completions", json.dumps(BODY),
                    {"content-type": "application/json"})  # fmt: skip
    end = time.monotonic() + 10
    while small.json("/health")["waiting"] != 1 and time.monotonic() < end:
        time.sleep(0.01)
    for path, body in (
        ("/v1/completions", BODY),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/messages", {"model": "default", "max_tokens": 5,
                          "messages": [{"role": "user", "content": "x"}]}),
        ("/api/generate", {"model": "default", "prompt": "x"}),
    ):  # fmt: skip
        status, headers, data = small.call(path, body)
        assert status == 429 and 1 <= int(headers["retry-after"]) <= 60, (path, status, data)
        assert b"waiting" in data
    assert "refused_total 4" in small.call("/metrics")[2].decode()
    streams[0].link.sock.close()
    waiting.close()
    small.until_idle()
    assert small.json("/v1/completions", BODY | {"max_tokens": 2})["choices"]


def test_a_closing_server_says_503():
    def submit(requests):
        raise Busy("the server is shutting down", 5, closing=True)

    service = SimpleNamespace(engine=SimpleNamespace(submit=submit), handles={})
    with pytest.raises(ApiError) as refused:
        Service.submit(service, [])
    response = response_for("/v1/completions", refused.value)
    assert response.status_code == 503 and response.headers["retry-after"] == "5"


def test_a_reader_that_goes_takes_no_more_steps(small):
    """Over the wire; that it is within two steps is counted in test_server_engine."""

    def steps() -> int:
        text = small.call("/metrics")[2].decode()
        return int(float(text.split("\nktransformers_steps_total ")[1].split("\n")[0]))

    before = steps()
    stream = Streaming(small)
    stream.link.sock.shutdown(socket.SHUT_RDWR)
    small.until_idle()
    after = steps()
    assert 0 < after - before < BODY["max_tokens"]
    time.sleep(0.3)
    assert steps() == after, "steps are run for a reader who has gone"


def test_descriptors_come_back(small):
    small.json("/v1/completions", BODY | {"max_tokens": 2})
    folder = Path(f"/proc/{small.process.pid}/fd")
    before = len(os.listdir(folder))
    for _ in range(10):
        stream = Streaming(small)
        stream.link.sock.shutdown(socket.SHUT_RDWR)
    small.until_idle()
    end = time.monotonic() + 5
    while len(os.listdir(folder)) > before and time.monotonic() < end:
        time.sleep(0.05)
    assert len(os.listdir(folder)) <= before
    live = small.json("/props")["live"]
    assert live["cache_pages_used"] == live["cache_pages_kept"]
