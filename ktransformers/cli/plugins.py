"""--allow-plugin: packages of the user's own operators, imported because the user names them.

A rule file names operators and imports none; the classes it may name are those that ship here and
those of packages named on the command line.
"""

import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from ktransformers.errors import UserError

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def allow_plugins(words: Iterable[str]) -> None:
    """Imports packages or modules (also of the current folder); several in a word with commas.

    Raises: UserError for a name that is none, a package that is not there, and one that fails.
    """
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if not names:
        return
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"--allow-plugin {name}: give a package's name, as in my_operators")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        for name in names:
            _import(name)
    finally:
        sys.path.remove(here)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        what = "no such package" if error.name and name.startswith(error.name) else str(error)
        raise UserError(f"--allow-plugin {name}: {what}; install it or start in its folder") from (
            error
        )
    except Exception as error:  # whatever somebody's package raises
        raise UserError(f"--allow-plugin {name}: {type(error).__name__}: {error}") from error
