"""An engine that answers by script, with the real one's interface, to test the chat around it.

The answer to "say X" is X, to "count" the numbers from 1 on without end, to "recall" all user
messages it was shown, else "ok". KT_TOKEN_SECONDS slows each token down.

Run as a program it is `python -m ktransformers.local_chat` with this engine, for a terminal.
"""

import itertools
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

from ktransformers.checkpoint.tokenizer import build_tokenizer as build_tokenizer
from ktransformers.local_chat import main


@dataclass
class SamplingOptions:
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_new_tokens: int = 1000
    stop_ids: tuple[int, ...] = ()


class Model:
    def __init__(self, cache_lens: int):
        self.cache_lens = cache_lens

    def describe(self) -> str:
        return "scripted model, no arithmetic"


def load_model(gguf_path, cache_lens=4096, progress=None, **options) -> Model:
    for done in (0, 50, 100):
        progress(done, 100, "blk.0")
    return Model(cache_lens)


class ChatSession:
    """Keeps the ids it was given; counts as prompt only those it did not know yet."""

    def __init__(self, model: Model, tokenizer):
        self.tokenizer = tokenizer
        self.known: list[int] = []
        self.stopped = False
        self.samplings: list[SamplingOptions] = []
        self.stats = SimpleNamespace(
            prompt_count=0, prompt_seconds=0.0, eval_count=0, eval_seconds=0.0
        )

    def append(self, ids: list[int]) -> None:
        same = len(os.path.commonprefix([self.known, ids]))
        self.stats = SimpleNamespace(
            prompt_count=len(ids) - same, prompt_seconds=0.5, eval_count=0, eval_seconds=0.0
        )
        self.known = list(ids)

    def stop(self) -> None:
        self.stopped = True

    def answer(self) -> Iterator[str]:
        text = self.tokenizer.decode(self.known)
        users = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", text, re.S)
        if users[-1].startswith("say "):
            yield users[-1][4:]
        elif users[-1] == "count":
            yield from (f"{n} " for n in itertools.count(1))
        elif users[-1] == "recall":
            yield " | ".join(users)
        else:
            yield "ok"

    def generate(self, sampling: SamplingOptions) -> Iterator[int]:
        self.stopped = False
        self.samplings.append(sampling)
        pause = float(os.environ.get("KT_TOKEN_SECONDS", "0"))
        for piece in self.answer():
            for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]:
                if self.stopped or self.stats.eval_count >= sampling.max_new_tokens:
                    return
                time.sleep(pause)
                self.known.append(token)
                self.stats.eval_count += 1
                self.stats.eval_seconds += 0.25
                yield token


if __name__ == "__main__":
    sys.exit(main(runtime=sys.modules[__name__]))
