"""A chat in the terminal with a model from a GGUF file, by upstream's flags.

    python -m ktransformers.local_chat --gguf_path model.gguf

Exit status: 0, 2 for what the user can mend (one line says what), 130 after Ctrl-C.
"""

import gc
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

if not __package__:  # run as a file, or by name from inside this folder: let the package be found
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from ktransformers.cli.chat_flags import PARSER, USAGE, Request, check_request
from ktransformers.cli.fire_flags import asks_for_help
from ktransformers.cli.main import guarded
from ktransformers.cli.placement_flags import load_options


class Progress:
    """Loading, as one line that is rewritten on a terminal: (done, total) bytes, and what."""

    def __init__(self):
        self.shown = 0.0
        self.active = sys.stderr.isatty()

    def __call__(self, done: int, total: int, what: str = "") -> None:
        now = time.monotonic()
        if self.active and (now - self.shown > 0.1 or done >= total):
            self.shown = now
            share = 100 * done // max(total, 1)
            print(f"\rloading {share:3d} % of {total / 2**20:.0f} MiB", end="", file=sys.stderr)
            if done >= total:
                print("\r\x1b[K", end="", file=sys.stderr)
            sys.stderr.flush()


def engine() -> Any:
    """The real engine; importing it imports torch."""
    from ktransformers.runtime import session

    return session


def load(request: Request, runtime: Any) -> Any:
    """The conversation with the model a request asks for; prints what was chosen."""
    from ktransformers.cli.conversation import Conversation

    options = request.options
    optional = load_options(options)
    if options["cache_lens"]:
        optional["cache_lens"] = options["cache_lens"]
    model = runtime.load_model(
        request.gguf or options["gguf_path"],
        model_path=options["model_path"],
        optimize_config_path=options["optimize_config_path"],
        cpu_infer=options["cpu_infer"],
        activations=options["activations"],
        chunk_size=options["chunk_size"],
        weight_cache=options["weight_cache"],
        in_place=options["in_place"],
        progress=Progress(),
        **optional,
    )
    gc.freeze()  # what loading made stays: nothing to look through again while answering
    print(model.describe(), file=sys.stderr)
    tokenizer = runtime.build_tokenizer(request.gguf, options["model_path"])
    sampling = runtime.SamplingOptions(**request.sampling)
    session = runtime.ChatSession(model, tokenizer)
    return Conversation(
        session, tokenizer, sampling, model.cache_lens, force_think=options["force_think"]
    )


def chat(words: Sequence[str], runtime: Any = None) -> int:
    """Checks, loads, talks. Raises what `guarded` turns into one line."""
    from ktransformers.cli.repl import Repl, pipe_reader, terminal_reader

    request = check_request(list(words))
    if request.options["dry_run"]:
        from ktransformers.runtime.planning import memory_of

        print("\n".join(memory_of(request.gguf, request.options).lines()))
        return 0
    conversation = load(request, runtime or engine())
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    prompt = request.options["prompt"]
    read_line = terminal_reader() if at_terminal and prompt is None else pipe_reader()
    repl = Repl(conversation, read_line, sys.stdout, request.prompt_text)
    if prompt is not None:
        repl.answer(prompt)
        return 0
    if at_terminal:
        repl.say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat\n")
    repl.run()
    return 0


def main(words: Sequence[str] | None = None, runtime: Any = None) -> int:
    """Returns the exit status. `runtime` replaces the engine in tests."""
    words = list(sys.argv[1:] if words is None else words)
    if asks_for_help(words):
        print(PARSER.help(USAGE))
        return 0
    return guarded(lambda: chat(words, runtime))


if __name__ == "__main__":
    sys.exit(main())
