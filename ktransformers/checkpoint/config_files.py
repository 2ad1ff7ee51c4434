"""A Hugging Face folder as data: its configuration and tokenizer files, read with size limits.

Nothing in such a folder is imported or executed. A symbolic link is followed, as the Hub's cache is
made of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ktransformers.errors import UserError

# Largest sizes read, bytes. The largest published tokenizer.json has about 35 MB.
LIMITS = {
    "config.json": 4 << 20,
    "generation_config.json": 1 << 20,
    "tokenizer_config.json": 16 << 20,
    "special_tokens_map.json": 4 << 20,
    "added_tokens.json": 4 << 20,
    "chat_template.json": 2 << 20,
    "chat_template.jinja": 1 << 20,
    "tokenizer.json": 128 << 20,
    "tokenizer.model": 64 << 20,
    "tiktoken.model": 64 << 20,
    "vocab.json": 64 << 20,
    "merges.txt": 64 << 20,
}
_OTHER_LIMIT = 64 << 20
_MAX_NAMED_TEMPLATES = 32


class ModelFolder:
    """The files of one folder. Reading one that is absent gives None; one that is bad raises."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes | None:
        """The bytes of a file. Raises: UserError when it is larger than any real one."""
        file = self.path / name
        if not file.is_file():
            return None
        limit = LIMITS.get(name, _OTHER_LIMIT)
        try:
            with file.open("rb") as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            raise UserError(f"{file}: {error.strerror or error}") from error
        if len(data) > limit:
            raise UserError(f"{file}: is larger than {limit} bytes, which no such file is")
        return data

    def text(self, name: str) -> str | None:
        """A file as UTF-8 text."""
        data = self.read(name)
        if data is None:
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path / name}: not UTF-8 at byte {error.start}") from error

    def json(self, name: str) -> dict[str, Any] | None:
        """A file as a JSON object."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise UserError(f"{self.path / name}: no JSON at {place}: {error.msg}") from error
        except RecursionError as error:
            raise UserError(f"{self.path / name}: JSON nested too deeply") from error
        if not isinstance(value, dict):
            raise UserError(f"{self.path / name}: expected a JSON object")
        return value

    def only(self, suffix: str) -> str | None:
        """Name of the one file with that suffix, None when there is not exactly one."""
        names = [entry.name for entry in self.path.iterdir() if entry.name.endswith(suffix)]
        return names[0] if len(names) == 1 else None

    def templates(self) -> dict[str, str]:
        """Chat templates in files of their own, by name; the usual one is "default"."""
        found = {}
        if (text := self.text("chat_template.jinja")) is not None:
            found["default"] = text
        elif (values := self.json("chat_template.json")) is not None:
            if isinstance(values.get("chat_template"), str):
                found["default"] = values["chat_template"]
        folder = self.path / "additional_chat_templates"
        if folder.is_dir():
            for file in sorted(folder.glob("*.jinja"))[:_MAX_NAMED_TEMPLATES]:
                found[file.stem] = ModelFolder(folder).text(file.name)
        return found


def open_folder(model_path: str | Path) -> ModelFolder:
    """The folder `model_path`, or the configuration files of the Hub repository of that name.

    Raises: UserError when there is neither.
    """
    from ktransformers.checkpoint.hub import resolve_config

    path = Path(resolve_config(model_path)).expanduser()
    if path.is_file():
        raise UserError(f"{path}: is a file; model_path is a folder or a Hub name (user/repo)")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; model_path is a folder or a Hub name (user/repo)")
    return ModelFolder(path)
