"""`ktransformers serve`: a model for OpenAI, Anthropic and Ollama clients, and a chat page."""

from __future__ import annotations

from collections.abc import Sequence

from ktransformers.cli.fire_flags import asks_for_help
from ktransformers.cli.main import guarded
from ktransformers.cli.serve_flags import HELP, USAGE, check_serve


def main(words: Sequence[str]) -> int:
    """Returns the exit status."""
    if asks_for_help(words):
        print(HELP.help(USAGE))
        return 0
    return guarded(lambda: start(list(words)))


def start(words: list[str]) -> int:
    from ktransformers.local_chat import Progress

    request = check_serve(words)
    from ktransformers.server.serve import serve

    return serve(request, Progress())
