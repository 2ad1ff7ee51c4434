"""How far two sets of logits are apart. All sums in float64; a is the reference, b is ours."""

from dataclasses import dataclass

import numpy as np

NEAR_TIE = 1e-3  # two best logits closer than this: either token is a right answer


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KL(a || b) of each position in nats: logits [tokens, vocabulary] -> [tokens]."""
    p, q = log_softmax(a), log_softmax(b)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def entropy(logits: np.ndarray) -> np.ndarray:
    """Nats per position."""
    p = log_softmax(logits)
    return -(np.exp(p) * p).sum(axis=-1)


def margins(logits: np.ndarray) -> np.ndarray:
    """Best minus second-best logit of each position."""
    best = np.partition(logits, -2, axis=-1)[..., -2:].astype(np.float64)
    return best[..., 1] - best[..., 0]


@dataclass(frozen=True)
class Comparison:
    """kl_mean, kl_max in nats; top1 in 0..1 over positions that are no near tie."""

    tokens: int
    kl_mean: float
    kl_max: float
    nmse: float
    top1: float
    near_ties: int


class Tally:
    """Adds up comparisons of pieces of a text, some rows at a time to bound memory."""

    ROWS = 64

    def __init__(self):
        self.kl: list[np.ndarray] = []
        self.error = self.power = 0.0
        self.clear = self.same = self.near_ties = 0
        self.is_finite = True

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Logits [tokens, vocabulary] of the reference and of ours."""
        if a.shape != b.shape:
            raise ValueError(f"logits of shape {b.shape} against the reference's {a.shape}")
        for i in range(0, len(a), self.ROWS):
            self._add_rows(a[i : i + self.ROWS], b[i : i + self.ROWS])

    def _add_rows(self, a: np.ndarray, b: np.ndarray) -> None:
        if not np.isfinite(b).all():
            self.is_finite = False
            return
        self.kl.append(kl(a, b))
        self.error += float(((a.astype(np.float64) - b) ** 2).sum())
        self.power += float((a.astype(np.float64) ** 2).sum())
        clear = margins(a) > NEAR_TIE
        self.clear += int(clear.sum())
        self.near_ties += int((~clear).sum())
        self.same += int((clear & (a.argmax(axis=-1) == b.argmax(axis=-1))).sum())

    def result(self) -> Comparison:
        """A row that is not finite is infinitely wrong instead of vanishing from the mean."""
        if not self.is_finite:
            return Comparison(0, np.inf, np.inf, np.inf, 0.0, 0)
        each = np.concatenate(self.kl)
        top1 = self.same / self.clear if self.clear else 1.0
        nmse = self.error / self.power
        return Comparison(
            len(each), float(each.mean()), float(each.max()), nmse, top1, self.near_ties
        )


def compare(a: np.ndarray, b: np.ndarray) -> Comparison:
    """Logits [tokens, vocabulary] of the reference and of ours."""
    tally = Tally()
    tally.add(a, b)
    return tally.result()


@dataclass(frozen=True)
class GreedyMatch:
    """equal: no difference but at a near tie. compared: tokens until the first near tie that split
    the two, after which the contexts differ and nothing can be compared."""

    equal: bool
    compared: int
    near_ties: int


def greedy_match(tokens: list[int], gaps: list[float], ours: list[int]) -> GreedyMatch:
    """tokens, gaps: the reference's greedy tokens and the margin at each; ours: our tokens."""
    ties = sum(gap <= NEAR_TIE for gap in gaps)
    for i, (token, gap) in enumerate(zip(tokens, gaps, strict=True)):
        if i >= len(ours):
            return GreedyMatch(False, i, ties)
        if ours[i] != token:
            return GreedyMatch(gap <= NEAR_TIE, i, ties)
    return GreedyMatch(len(ours) == len(tokens), len(tokens), ties)
