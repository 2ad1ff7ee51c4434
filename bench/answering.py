"""The loop of a process that keeps an engine loaded and answers one line after another.

Standard input: a job, then tasks, JSON objects a line each. Standard output: {"answer": ...} for
each, the engine's facts for the job, or {"failed": why} and the end. Engines print there too; such
lines are nobody's answers. It runs under the peers' Python as well: nothing of ours is imported.
bench.cpu_engine asks.
"""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

MISSING = 3  # exit status: the engine is not installed


def answer(load: Callable[[dict], Any], asked: TextIO | None = None) -> int:
    """Answers until there are no more lines. load: job -> engine.

    An engine has `facts` and a method for each kind of task, {"do": its name, its arguments}.
    Returns the exit status: MISSING where load() finds no module.
    """
    asked = asked or sys.stdin
    try:
        engine = load(json.loads(asked.readline()))
        say(answer=engine.facts)
        for line in asked:
            task = json.loads(line)
            say(answer=getattr(engine, task.pop("do"))(**task))
    except ImportError as error:
        print(error, file=sys.stderr)
        return MISSING
    except Exception as error:
        say(failed=f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return 1
    return 0


def say(**line: Any) -> None:
    # A line of its own, whatever the engine has printed before.
    print("\n" + json.dumps(line), flush=True)
