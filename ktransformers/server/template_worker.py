"""The helper process that renders chat templates; started before the model is loaded.

Speaks length-prefixed JSON on standard input and output. It ends when its input does, so that
nothing is left behind when the server is killed; before the first template it gives up all it does
not need: memory beyond a bound, writing files, starting processes.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from typing import Any, BinaryIO

from ktransformers.checkpoint.template_sandbox import TemplateProblem, compiled, rendered

MEMORY_BYTES = 1 << 30
LARGEST_MESSAGE = 64 << 20
PR_SET_PDEATHSIG = 1


def read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """One message; None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "little")
    if size > LARGEST_MESSAGE:
        return None
    data = stream.read(size)
    return json.loads(data) if len(data) == size else None


def write_message(stream: BinaryIO, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    stream.write(len(data).to_bytes(4, "little") + data)
    stream.flush()


def give_up_rights() -> None:
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        resource.setrlimit(limit, (most, most))
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        pass  # the end of standard input ends this process all the same
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle


def main() -> int:
    give_up_rights()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    write_message(sink, {"ready": True})
    first = read_message(source)
    if first is None:
        return 0
    templates, problems = {}, {}
    for name, text in first["templates"].items():
        try:
            templates[name] = compiled(text)
        except TemplateProblem as problem:
            problems[name] = str(problem)
    write_message(sink, {"problems": problems})
    while (message := read_message(source)) is not None:
        name = message["template"]
        try:
            if name not in templates:
                raise TemplateProblem(problems.get(name, f"there is no template {name}"))
            answer = {"text": rendered(templates[name], message["values"])}
        except TemplateProblem as problem:
            answer = {"error": str(problem)}
        write_message(sink, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
