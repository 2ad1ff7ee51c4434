"""A conversation with a model: its messages, their tokens, and answers as they come.

Knows no terminal. The engine is anything with runtime/session.py's interface, so that tests talk to
a scripted one.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktransformers.errors import UserError

FORMAT, VERSION = "ktransformers chat", 1
LARGEST_FILE = 64 << 20
ROLES = ("system", "user", "assistant")
THINK = "<think>\n"


@dataclass
class Turn:
    """Counts and seconds of one answer."""

    prompt_count: int
    prompt_seconds: float
    eval_count: int
    eval_seconds: float

    def lines(self) -> list[str]:
        """Upstream's six lines of statistics."""

        def rate(count: int, seconds: float) -> float:
            return count / seconds if seconds > 0 else 0.0

        return [
            f"prompt eval count:    {self.prompt_count} token(s)",
            f"prompt eval duration: {self.prompt_seconds:.6f}s",
            f"prompt eval rate:     {rate(self.prompt_count, self.prompt_seconds):.4f} tokens/s",
            f"eval count:           {self.eval_count} token(s)",
            f"eval duration:        {self.eval_seconds:.6f}s",
            f"eval rate:            {rate(self.eval_count, self.eval_seconds):.4f} tokens/s",
        ]


class Conversation:
    """Messages so far and the session that holds their keys and values.

    session: runtime's ChatSession; tokenizer: a PreTrainedTokenizerFast; sampling: SamplingOptions;
    cache_lens: tokens the session can hold; force_think: answers begin with <think>.
    """

    def __init__(
        self,
        session: Any,
        tokenizer: Any,
        sampling: Any,
        cache_lens: int,
        force_think: bool = False,
    ):
        self.session = session
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.cache_lens = cache_lens
        self.force_think = force_think
        self.messages: list[dict[str, str]] = []
        self.last: Turn | None = None
        self.tokens = 0  # of the conversation, as last sent to the model

    def clear(self) -> None:
        self.messages = []
        self.last = None
        self.tokens = 0

    def stop(self) -> None:
        """Ends the answer under way; safe in a signal handler."""
        self.session.stop()

    def render(self) -> list[int]:
        """Token ids of the messages by the model's chat template, up to where the answer begins."""
        if self.tokenizer.chat_template:
            try:
                text = self.tokenizer.apply_chat_template(
                    self.messages, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # the template is data of the model file
                line = " ".join(str(error).split())
                raise UserError(f"the model's chat template fails: {line}") from error
            if self.force_think and not text.rstrip().endswith("<think>"):
                text += THINK
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        text = "\n".join(message["content"] for message in self.messages)
        return list(self.tokenizer(text + (THINK if self.force_think else ""))["input_ids"])

    def ask(self, text: str) -> Iterator[str]:
        """Pieces of the answer to one more message; both are remembered, a stopped answer as far
        as it came. Raises UserError, and remembers nothing, if the tokens do not fit the cache."""
        from ktransformers.checkpoint.stream_decoder import StreamDecoder

        self.messages.append({"role": "user", "content": text})
        try:
            ids = self.render()
            if len(ids) >= self.cache_lens:
                raise UserError(
                    f"the conversation has {len(ids)} tokens, the cache holds {self.cache_lens} "
                    "with the answer: /clear forgets it, --cache_lens makes room"
                )
        except UserError:
            self.messages.pop()
            raise
        answer = THINK if self.force_think else ""
        decoder = StreamDecoder(self.tokenizer)
        try:
            if answer:
                yield answer
            self.session.append(ids)
            for token in self.session.generate(self.sampling):
                if piece := decoder.push(token):
                    answer += piece
                    yield piece
            if piece := decoder.finish():
                answer += piece
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": answer})
            stats = self.session.stats
            self.last = Turn(
                stats.prompt_count, stats.prompt_seconds, stats.eval_count, stats.eval_seconds
            )
            self.tokens = len(ids) + stats.eval_count

    def save(self, path: str) -> None:
        """Writes the messages as JSON, whole or not at all, readable by its owner only."""
        document = {"format": FORMAT, "version": VERSION, "messages": self.messages}
        part = f"{path}.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(document, file, ensure_ascii=True, indent=1)
            os.replace(part, path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None

    def load(self, path: str) -> None:
        """Replaces the messages by a saved file's; UserError, and they stay, if it is none."""
        try:
            if Path(path).stat().st_size > LARGEST_FILE:
                raise UserError(f"{path}: larger than any saved chat ({LARGEST_FILE >> 20} MiB)")
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path}: is not a saved chat (not JSON)") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise UserError(f"{path}: is not a saved chat")
        if document.get("version") != VERSION:
            raise UserError(
                f"{path}: version {document.get('version')}, this program reads {VERSION}"
            )
        messages = document.get("messages")
        if not isinstance(messages, list) or not all(is_message(m) for m in messages):
            raise UserError(f"{path}: damaged, a message is not a role with a text")
        self.clear()
        self.messages = [{"role": m["role"], "content": m["content"]} for m in messages]


def is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ROLES
        and isinstance(value.get("content"), str)
    )
