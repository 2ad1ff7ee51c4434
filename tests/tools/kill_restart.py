"""kill -9 at random moments of a server's life; after each, nothing is left and the next is right.

    python -m tests.tools.kill_restart [--times 200] [--seed 1]

A third of the moments lie in the start (imports, loading, listening), the others in answering
several streams. After each: no process of the killed server is left, no file is in its temporary
folder or cache, and its port can be taken at once. Every server that comes up must give, for a
fixed prompt, the very text that the first one gave. Exit status 1 where anything is off.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from tests.support.families import families
from tests.support.miniatures import miniature, write
from tests.support.serving import Server, free_port, offspring

ASKED = {"prompt": "hello", "max_tokens": 12, "ignore_eos": True, "temperature": 0}


def stream(url: str) -> None:
    body = json.dumps(ASKED | {"max_tokens": 9000, "stream": True}).encode()
    request = urllib.request.Request(
        url + "/v1/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            while reply.readline():
                pass
    except (OSError, ValueError):
        pass  # it was killed


def left_behind(server: Server, folder: Path, seconds: float = 10) -> list[str]:
    """Processes and files that a killed server left; processes get a moment to notice."""
    end = time.monotonic() + seconds
    while (processes := offspring(server)) and time.monotonic() < end:
        time.sleep(0.05)
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    return [f"process {number}" for number in processes] + files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, port = random.Random(options.seed), free_port()
    counts = {"starting": 0, "answering": 0}
    wanted, problems, start_seconds = None, [], 2.0
    with tempfile.TemporaryDirectory() as place:
        family = families()["qwen3"]
        family.config["max_position_embeddings"] = 32768
        model, folder = Path(place) / "mini.gguf", Path(place) / "made"
        folder.mkdir()
        write(miniature(family, types="Q8_0"), model)
        environment = {"TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder),
                       "XDG_STATE_HOME": str(folder)}  # fmt: skip
        os.environ |= environment
        for turn in range(options.times):
            starting = rng.random() < 1 / 3 and wanted is not None
            counts["starting" if starting else "answering"] += 1
            began = time.monotonic()
            with Server(
                model, "--port", str(port), "--cache_lens", "30000", wait=not starting
            ) as s:
                if starting:
                    time.sleep(rng.uniform(0, start_seconds))
                else:
                    start_seconds = time.monotonic() - began
                    text = s.json("/v1/completions", ASKED)["choices"][0]["text"]
                    wanted = wanted or text
                    if text != wanted:
                        problems.append(f"{turn}: said {text!r} instead of {wanted!r}")
                    for _ in range(rng.randint(1, 4)):
                        threading.Thread(target=stream, args=(s.url,), daemon=True).start()
                    time.sleep(rng.uniform(0, 0.5))
                s.process.kill()
                s.process.wait(10)
            problems += [f"{turn}: left {what}" for what in left_behind(s, folder)]
            if turn % 20 == 19:
                print(f"{turn + 1} of {options.times}: {len(problems)} problems", flush=True)
        with Server(model, "--port", str(port)) as last:
            if last.json("/v1/completions", ASKED)["choices"][0]["text"] != wanted:
                problems.append("the last server says something else")
    for problem in problems[:20]:
        print(problem)
    print(f"killed {counts['starting']} times while starting, {counts['answering']} while "
          f"answering: {len(problems)} problems")  # fmt: skip
    return min(len(problems), 1)


if __name__ == "__main__":
    sys.exit(main())
