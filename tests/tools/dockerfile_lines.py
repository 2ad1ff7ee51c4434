"""A Dockerfile's instructions for one target as calls of shell functions: what Docker would do.

    python3 tests/tools/dockerfile_lines.py Dockerfile cpu

Prints, for the target and the stages it copies from: `stage NAME IMAGE`, `do_run COMMAND`,
`do_copy STAGE FROM TO` (an empty STAGE is the folder of the Dockerfile), `do_env NAME VALUE`,
`do_arg NAME DEFAULT`, `do_user NAME`, `do_start WORD...` (entry point and command).
"""

import json
import shlex
import sys
from pathlib import Path


def instructions(text: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction; comments dropped, continued lines joined."""
    lines, held = [], ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        held += line.rstrip()
        if held.endswith("\\"):
            held = held[:-1]
            continue
        if held.strip():
            word, _, rest = held.strip().partition(" ")
            lines.append((word.upper(), rest.strip()))
        held = ""
    return lines


def calls(text: str, target: str) -> list[list[str]]:
    """Raises: ValueError for an instruction that is not known here, or no such target."""
    common, stages, order = [], {}, []
    start: dict[str, list[str]] = {}
    current = common
    for word, rest in instructions(text):
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            current = stages[name] = [["stage", name, image]]
            order.append(name)
        elif word == "RUN":
            current.append(["do_run", rest])
        elif word == "ARG":
            name, _, default = rest.partition("=")
            current.append(["do_arg", name, "".join(shlex.split(default))])
        elif word == "ENV":
            name, _, value = rest.partition("=")
            current.append(["do_env", name, value])
        elif word == "COPY":
            words = rest.split()
            source = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else ""
            current.append(["do_copy", source, *words])
        elif word == "USER":
            current.append(["do_user", rest])
        elif word in ("ENTRYPOINT", "CMD"):
            start.setdefault(order[-1], []).extend(json.loads(rest))
        elif word != "EXPOSE":
            raise ValueError(f"{word}: not known to this script")
    if target not in stages:
        raise ValueError(f"{target}: no such target; there are {', '.join(order)}")
    needed, todo = [], [target]
    while todo:
        name = todo.pop()
        needed.append(name)
        todo += [call[1] for call in stages[name] if call[0] == "do_copy" and call[1]]
    made = list(common)
    for name in order:
        made += stages[name] if name in needed else []
    return [*made, ["do_start", *start[target]]]


if __name__ == "__main__":
    for call in calls(Path(sys.argv[1]).read_text(), sys.argv[2]):
        print(shlex.join(call))
