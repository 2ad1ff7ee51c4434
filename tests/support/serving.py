"""A real server in a process of its own, for tests that talk to it over the loopback address."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Server:
    """`ktransformers serve` on a free port; use it in a with statement.

    log: what it wrote on standard error so far. python: flags of the interpreter, e.g. "-O".
    mark: in the environment of the server and all it starts. wait: until it serves.
    """

    def __init__(
        self, model, *flags: str, python: tuple[str, ...] = (), seconds: float = 120,
        wait: bool = True,
    ):  # fmt: skip
        self.mark = uuid.uuid4().hex
        command = [sys.executable, *python, "-m", "ktransformers.cli.main", "serve"]
        command += ["--gguf_path", str(model), "--port", "0", *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "KT_TEST_MARK": self.mark},
        )  # fmt: skip
        self.log = ""
        self._found = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait and not (self._found.wait(seconds) and self.url):
            self.end()
            raise AssertionError(f"the server did not start: {self.log}")

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log += line
            if match := re.search(r"serving .* at (https?://\S+)", line):
                self.url = match[1]
                self._found.set()
        self._found.set()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *problem) -> None:
        self.end()

    def end(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Sends a signal and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        self._reader.join(5)
        self.process.stderr.close()
        return self.process.returncode

    def call(
        self, path: str, body=None, method: str | None = None, raw: bytes | None = None, **headers
    ) -> tuple[int, dict, bytes]:
        """(status, headers in lower case, body) of one request."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            sent = {"content-type": "application/json"} | sent
        request = urllib.request.Request(self.url + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def json(self, path: str, body=None, **headers):
        """The JSON of a request that must succeed."""
        status, _, data = self.call(path, body, **headers)
        assert status == 200, (status, data)
        return json.loads(data)

    def until_idle(self, seconds: float = 20) -> dict:
        """Waits until nothing runs; returns /props' live figures."""
        end = time.monotonic() + seconds
        while True:
            live = self.json("/props")["live"]
            if live["running"] == live["waiting"] == 0:
                return live
            assert time.monotonic() < end, live
            time.sleep(0.05)


def offspring(server: Server) -> list[int]:
    """Processes that the server, which has ended, left behind."""
    left, mark = [], f"KT_TEST_MARK={server.mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                left.append(int(folder.name))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return left


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
