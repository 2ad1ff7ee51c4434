"""Merges of a SentencePiece BPE vocabulary, which stores a score per token and no merges.

SentencePiece joins, of all neighbours whose concatenation is a token, the pair with the best score
and of equals the leftmost. The `tokenizers` library wants an ordered list of pairs instead. Listing
every cut of every token into two tokens, by falling score of the whole, gives the same result
except where one token's cuts overlap (x·yx against xy·x): there the longer left part goes first,
which is what leftmost-first leads to in runs of one character, the only place it matters.
"""

from __future__ import annotations

from ktransformers.checkpoint.tokenizer_vocab import BYTE, NORMAL, UNUSED, USER_DEFINED, Vocabulary


def merges_by_score(vocab: Vocabulary) -> list[tuple[str, str]]:
    """Pairs (left, right) of mergeable tokens whose concatenation is one, best score first."""
    mergeable = (0, NORMAL, USER_DEFINED, UNUSED)
    scores = {
        token: score
        for token, kind, score in zip(vocab.tokens, vocab.types, vocab.scores, strict=True)
        if kind in mergeable
    }
    found = []
    for token, score in scores.items():
        for cut in range(len(token) - 1, 0, -1):
            left = token[:cut]
            if left in scores and token[cut:] in scores:
                found.append((-score, -cut, left, token[cut:]))
    found.sort(key=lambda entry: entry[:2])
    return [(left, right) for _, _, left, right in found]


def has_all_bytes(vocab: Vocabulary) -> bool:
    """Whether every byte has its own token, so that no text is unknown."""
    return sum(kind == BYTE for kind in vocab.types) == 256
