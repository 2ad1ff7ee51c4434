"""How two runs of a model differ: logits over a text, in nats and tokens. Imports numpy only."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, over the last axis."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KL(a || b) per row in nats; logits [rows, vocabulary]."""
    p, q = log_softmax(a), log_softmax(b)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def nats(logits: np.ndarray, ids: np.ndarray) -> float:
    """Mean -log p of each next token: logits [n, vocabulary] of ids [n]."""
    p = log_softmax(logits[:-1])
    return float(-p[np.arange(len(ids) - 1), ids[1:]].mean())


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Index of the first token in which two answers differ; None where they are equal."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def text_logits(model, ids: list[int], piece: int = 256):
    """Logits of a text in windows of `piece` tokens, each a sequence of its own: a generator of
    (ids [n], float32 [n, vocabulary])."""
    import torch

    for start in range(0, len(ids), piece):
        part = ids[start : start + piece]
        if len(part) < 2:
            return
        with torch.no_grad():
            out = model(input_ids=torch.tensor([part]), use_cache=False)
        yield np.asarray(part), out.logits[0].float().numpy()
