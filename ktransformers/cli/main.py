"""The console command `ktransformers`: a word names a command, an option starts the server.

Typer, torch and the rest are imported only by the commands that use them: --help, --version and
doctor answer at once, and doctor also on a broken installation.
"""

import os
import sys
from collections.abc import Callable, Sequence

from ktransformers import __version__
from ktransformers.errors import UserError

USAGE_ERROR = 2
COMPLETE = "_KTRANSFORMERS_COMPLETE"  # set by a shell that asks how a word may go on
COMPLETION = ("--install-completion", "--show-completion")


def fail(line: str) -> int:
    """Prints a user's error as one line; returns the exit status."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return USAGE_ERROR


def guarded(command: Callable[[], int | None]) -> int:
    """Runs a command; what a user can have caused ends as one line and status 2."""
    try:
        return command() or 0
    except (UserError, ValueError, NotImplementedError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return 0
        return fail(str(error) or type(error).__name__)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "ktransformers"):
            raise  # a fault of ours
        return fail(
            f"the Python package {package} is not installed for {sys.executable}; "
            "`make dev_install` makes a .venv with all of them, `ktransformers doctor` tells more"
        )
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 (doctor found something), 2 (user's error), 130 (Ctrl-C)."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else "--help"
    if first in ("--version", "-V", "version"):
        return guarded(show_version)
    if first == "doctor" and len(words) == 1:
        from ktransformers.cli.doctor import main as doctor

        return guarded(doctor)
    if first == "chat":
        from ktransformers.local_chat import main as chat

        return chat(words[1:])
    if COMPLETE in os.environ or first in COMPLETION:
        return guarded(lambda: run_typer(words))
    if first == "serve" or (first.startswith("-") and first not in ("--help", "-h")):
        from ktransformers.cli.serve import main as serve

        return serve(words[1:] if first == "serve" else words)
    return guarded(lambda: run_typer(words or ["--help"]))


def run_typer(words: list[str]) -> int | None:
    """Hands the words to typer; what it refuses becomes one line as any other error."""
    from ktransformers.cli.commands import app

    try:
        return app(words, prog_name="ktransformers", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise UserError(f"{error.format_message()} `ktransformers --help` lists all") from None


def show_version() -> None:
    print(f"ktransformers {__version__}")


if __name__ == "__main__":
    sys.exit(main())
