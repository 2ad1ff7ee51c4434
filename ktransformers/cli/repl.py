"""The chat at the keyboard: reads lines, runs /commands, streams answers, stops on Ctrl-C."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from ktransformers.cli.conversation import Conversation
from ktransformers.errors import UserError

HELP = """\
/help         this list
/clear        forget the conversation
/save FILE    write the conversation to a file
/load FILE    go on with a saved conversation
/stats        figures of the last answer
/exit         end (so does Ctrl-D)
\"\"\"           begins a message of several lines, and a line ending with it ends the message
FILE          the name of an existing text file sends its content
Ctrl-C        stops the answer
"""
LARGEST_FILE = 16 << 20

ReadLine = Callable[[str], str]


def history_file() -> Path:
    """Where typed lines are kept between runs: $XDG_STATE_HOME/ktransformers/chat_history."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "ktransformers", "chat_history")


def terminal_reader() -> ReadLine:
    """A line editor with history. Without a place to keep the history it lives in memory."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        history = FileHistory(str(path))
    except OSError:
        history = InMemoryHistory()
    return PromptSession(history=history).prompt


def pipe_reader() -> ReadLine:
    """Lines of standard input, without a prompt. Raises UserError for bytes that are not UTF-8."""
    count = 0

    def read_line(prompt: str) -> str:
        nonlocal count
        data = sys.stdin.buffer.readline()
        if not data:
            raise EOFError
        count += 1
        try:
            return data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            byte = data[error.start]
            raise UserError(
                f"standard input:{count}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8"
            ) from None

    return read_line


class Repl:
    """One chat session with a person or a script.

    empty_line: what an empty line sends (the content of --prompt_file), or None.
    """

    def __init__(
        self,
        conversation: Conversation,
        read_line: ReadLine,
        out: TextIO,
        empty_line: str | None = None,
    ):
        self.conversation = conversation
        self.read_line = read_line
        self.out = out
        self.empty_line = empty_line

    def say(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def run(self) -> None:
        """Until /exit or the end of input. Raises UserError only for input that is not text."""
        while True:
            try:
                line = self.read_line("Chat: ")
            except EOFError:
                return
            except KeyboardInterrupt:
                self.say("(Ctrl-D or /exit ends the chat)\n")
                continue
            try:
                if line.strip() in ("/exit", "/quit", "/bye"):
                    return
                message = self.message_of(line)
                if message:
                    self.answer(message)
            except UserError as error:
                self.say(f"error: {error}\n")

    def message_of(self, line: str) -> str | None:
        """What a typed line sends to the model; None where it was a command or nothing."""
        text = line.strip()
        if text.startswith('"""'):
            return self.read_block(text[3:])
        if not text:
            if self.empty_line is None:
                self.say("(an empty line sends nothing; /help lists the commands)\n")
            return self.empty_line
        word, _, rest = text.partition(" ")
        if command := self.commands().get(word):
            command(rest.strip())
            return None
        try:
            if os.path.isfile(text):
                return self.read_file(text)
        except (OSError, ValueError):  # no name of a file at all
            pass
        if text.startswith("/") and "/" not in text[1:] and " " not in text:
            raise UserError(f"unknown command {text}; /help lists them")
        return line

    def read_block(self, first: str) -> str | None:
        """Lines up to one that ends with three quotes; Ctrl-C gives the message up."""
        lines = [first]
        while not lines[-1].endswith('"""'):
            try:
                lines.append(self.read_line("... ").rstrip())
            except EOFError:
                return "\n".join(lines).strip()
            except KeyboardInterrupt:
                self.say("(message dropped)\n")
                return None
        return "\n".join(lines)[:-3].strip()

    def read_file(self, path: str) -> str:
        try:
            if os.path.getsize(path) > LARGEST_FILE:
                raise UserError(f"{path}: larger than {LARGEST_FILE >> 20} MiB; send a part of it")
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: byte at offset {error.start} is not UTF-8") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        self.say(f"(sending {len(text)} characters of {path})\n")
        return text

    def commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "/help": lambda _: self.say(HELP),
            "/clear": self.clear,
            "/save": self.save,
            "/load": self.load,
            "/stats": self.stats,
        }

    def clear(self, _: str) -> None:
        self.conversation.clear()
        self.say("(conversation forgotten)\n")

    def save(self, path: str) -> None:
        if not path:
            raise UserError("/save needs the name of a file")
        self.conversation.save(path)
        self.say(f"(saved {len(self.conversation.messages)} messages to {path})\n")

    def load(self, path: str) -> None:
        if not path:
            raise UserError("/load needs the name of a file")
        self.conversation.load(path)
        self.say(f"(loaded {len(self.conversation.messages)} messages from {path})\n")

    def stats(self, _: str) -> None:
        chat = self.conversation
        lines = chat.last.lines() if chat.last else ["(no answer yet)"]
        lines.append(f"conversation:         {chat.tokens} of {chat.cache_lens} token(s)")
        self.say("\n".join(lines) + "\n")

    def answer(self, message: str) -> None:
        """Streams the answer, then the statistics. The first Ctrl-C stops the answer only, a second
        one before it has stopped ends the program (KeyboardInterrupt)."""
        interrupts = 0

        def on_interrupt(signum, frame) -> None:
            nonlocal interrupts
            interrupts += 1
            if interrupts > 1:
                raise KeyboardInterrupt
            self.conversation.stop()

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            for piece in self.conversation.ask(message):
                self.say(piece)
        finally:
            signal.signal(signal.SIGINT, before)
        self.say("\n(stopped)\n" if interrupts else "\n")
        self.say("\n".join(self.conversation.last.lines()) + "\n")
