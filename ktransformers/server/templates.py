"""The server's side of the template helper: renders in bounded time, restarts what hangs."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

from ktransformers.checkpoint.chat_template import MAX_TEMPLATE_BYTES
from ktransformers.errors import UserError
from ktransformers.server import template_worker as worker

RENDER_SECONDS = 2.0
START_SECONDS = 30.0
COMPILE_SECONDS = 4.0


class Templates:
    """templates: name -> Jinja source ("default" and others, e.g. "tool_use"); values: what every
    template sees (bos_token, ...). Raises: UserError for a default template that is no Jinja."""

    def __init__(
        self, templates: dict[str, str], values: dict[str, str], seconds: float = RENDER_SECONDS
    ):
        for name, source in templates.items():
            if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
                raise UserError(f"chat template {name}: more than {MAX_TEMPLATE_BYTES} bytes")
        self.sources, self._values, self._seconds = templates, values, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        problems = self._start()
        if problem := problems.get("default"):
            self.close()
            raise UserError(f"chat template: {problem}")

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process else None

    def render(self, messages: list[dict], name: str = "default", **values: Any) -> str:
        """The conversation's text. Blocks; at most about RENDER_SECONDS.

        Raises: UserError when the template refuses or fails, or takes too long.
        """
        values = {**self._values, **values, "messages": messages}
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                worker.write_message(self._process.stdin, {"template": name, "values": values})
                answer = self._read(self._seconds)
            except (OSError, ValueError):
                answer = None
            if answer is None:
                self._stop()
                raise UserError(
                    f"chat template: gave no text in {self._seconds:g} s, or needed too much memory"
                )
        if "error" in answer:
            raise UserError(f"chat template: {answer['error']}")
        return answer["text"]

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> dict[str, str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ktransformers.server.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        if self._read(START_SECONDS) is None:
            self._stop()
            raise UserError("the helper process that renders chat templates did not start")
        worker.write_message(self._process.stdin, {"templates": self.sources})
        answer = self._read(COMPILE_SECONDS)
        if answer is None:
            self._stop()
            raise UserError(f"chat template: could not be read in {COMPILE_SECONDS:g} s")
        return answer["problems"]

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except OSError:
                pass
        self._process = None

    def _read(self, seconds: float) -> dict | None:
        """The next answer; None when it does not come in time or the helper is gone."""
        pipe, end = self._process.stdout, time.monotonic() + seconds
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            part = os.read(pipe.fileno(), 1 << 20)
            if not part:
                return None
            data += part
        return worker.json.loads(data[4:])
