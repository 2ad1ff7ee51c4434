"""What a cached beginning changes: a second turn's predictions behind the first one as it was
generated (and kept in pages), against those behind the same tokens evaluated as one prompt.

    python -m bench.serve_cache [--turns 8]

With the real chat model. By default generated tokens are computed more exactly than prompts, so the
two differ a little: the KL divergence is printed (bar: mean <= 0.002 nats). In deterministic
arithmetic they must be the same bit by bit. Exit status 1 where one of the two does not hold.
"""

import argparse
import sys

import numpy as np

from bench import report

TOPICS = ("the sea", "a bridge", "bread", "an old clock", "rain", "a library", "the moon", "a dog")
BAR = 0.002


class Turns:
    """activations: of the model, as --activations has it."""

    def __init__(self, activations: str):
        from ktransformers import _core
        from ktransformers.checkpoint.gguf import open_model
        from ktransformers.checkpoint.tokenizer import build_tokenizer
        from ktransformers.runtime.session import load_model
        from tests.support import smollm2

        path = smollm2.dense_path()
        self.model = load_model(path, activations=activations, cache_lens=4096)
        self.tokenizer, self.page = build_tokenizer(open_model(path)), _core.KV_PAGE

    def run(self, sequence, tokens: list[int], is_prompt: bool) -> np.ndarray:
        """float32 [tokens, vocab]: what each token's row predicts."""
        start, count = sequence.length, len(tokens)
        return np.array(self.model.kt.evaluate(
            np.array(tokens, np.int32), np.arange(start, start + count, dtype=np.int32),
            np.zeros(count, np.int32), is_prompt, [sequence], np.arange(count, dtype=np.int32),
        ))  # fmt: skip

    def turn(self, topic: str, answer: int = 160) -> tuple[np.ndarray, np.ndarray]:
        """Predictions over the second question, (from kept pages, all evaluated)."""
        encode, pool = self.tokenizer.encode, self.model.kt.engine.kv
        first = encode(
            f"<|im_start|>user\nTell me about {topic}.<|im_end|>\n<|im_start|>assistant\n"
        )
        second = encode(f"<|im_end|>\n<|im_start|>user\nNow in one short sentence, and say why "
                        f"{topic} matters to people in towns and in the country.<|im_end|>\n"
                        "<|im_start|>assistant\n")  # fmt: skip
        kept = pool.make_sequence()
        token = int(self.run(kept, first, True)[-1].argmax())
        said = []
        for _ in range(answer):
            said.append(token)
            token = int(self.run(kept, [token], False)[-1].argmax())
        whole = first + said + second
        kept.truncate(kept.length // self.page * self.page)  # whole pages are kept
        warm = self.run(kept, whole[kept.length :], True)[-len(second) :]
        cold = self.run(pool.make_sequence(), whole, True)[-len(second) :]
        kept.truncate(0)
        return warm, cold


def divergence(warm: np.ndarray, cold: np.ndarray) -> np.ndarray:
    """KL(cold || warm) of each row, in nats."""

    def logs(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(1, keepdims=True))

    p, q = logs(cold), logs(warm)
    return (np.exp(p) * (p - q)).sum(1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve_cache", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--turns", type=int, default=len(TOPICS))
    options = parser.parse_args(argv)
    print(report.header())
    default, found = Turns("auto"), []
    for topic in TOPICS[: options.turns]:
        found.append(divergence(*default.turn(topic)))
    rows = np.concatenate(found)
    holds = bool(rows.mean() <= BAR)
    print(f"default: {rows.size} predictions behind a cached beginning, KL mean {rows.mean():.2e}, "
          f"99 % {np.quantile(rows, 0.99):.2e}, most {rows.max():.2e} nats "
          f"(bar {BAR}: {'ok' if holds else 'missed'})", flush=True)  # fmt: skip
    del default
    exact = Turns("exact")
    same = all(np.array_equal(*exact.turn(topic)) for topic in TOPICS[: min(2, options.turns)])
    print(f"deterministic: {'the same bit by bit' if same else 'DIFFERENT'}")
    report.write_json("serve_cache", {"kl_mean": rows.mean(), "kl_max": rows.max(), "same": same})
    return 0 if holds and same else 1


if __name__ == "__main__":
    sys.exit(main())
