"""Commands in sessions of their own, of which nothing is left when they end or are ended.

Ninja gives every compiler a process group of its own, so ending a command, or its group, leaves
compilers behind that go on and spoil what is timed next: all processes of the session are ended.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

GRACE_SECONDS = 2.0  # for ninja to end its own, and for whoever writes a file to say so
OUT_OF_TIME = 124

running: set[int] = set()
_lock = threading.Lock()


def members(session: int) -> list[int]:
    """Live processes of a session; Linux only, none elsewhere."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:  # "pid (name) state parent group session ...", and a name may have parentheses
            state, _, _, of = stat.read_text(errors="replace").rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):
            continue  # it ended meanwhile
        if int(of) == session and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def end(session: int, grace: float = GRACE_SECONDS) -> None:
    """SIGTERM to every process of the session, SIGKILL to those that stay."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        until = time.monotonic() + patience
        while left := members(session):
            for pid in left:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
            if time.monotonic() >= until:
                break
            time.sleep(0.02)


def end_all(number: int, _frame: object) -> None:
    """A signal's handler: the sessions get no signal of this one's."""
    for session in list(running):
        end(session, 0.5)
    raise SystemExit(128 + number)


def run(command: list[str], seconds: float, cwd: Path, env: dict[str, str]) -> tuple[str, int]:
    """(what it wrote, its status or OUT_OF_TIME). Whatever it started has ended by then."""
    with tempfile.TemporaryFile() as output:
        # A file and no pipe: nobody who keeps it open can keep us waiting.
        child = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=subprocess.STDOUT,
                                 start_new_session=True)  # fmt: skip
        with _lock:
            running.add(child.pid)
        try:
            code = child.wait(timeout=max(0.1, seconds))
        except subprocess.TimeoutExpired:
            code = OUT_OF_TIME
        finally:
            end(child.pid)
            child.wait()
            with _lock:
                running.discard(child.pid)
        output.seek(0)
        return output.read().decode(errors="replace"), code
