"""A checked vocabulary becomes a `tokenizers.Tokenizer`, and that a transformers tokenizer.

`transformers` and `tokenizers` are imported inside the functions.
"""

from __future__ import annotations

from typing import Any

from ktransformers.checkpoint.pretokenizers import PRE_TOKENIZERS, build_pre_tokenizer
from ktransformers.checkpoint.tokenizer_spm import merges_by_score
from ktransformers.checkpoint.tokenizer_vocab import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary


def build_backend(vocab: Vocabulary):
    """`tokenizers.Tokenizer`: text -> ids with the begin and end tokens the vocabulary asks for."""
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer(_spm_model(vocab) if vocab.kind == "llama" else _bpe_model(vocab))
    (_set_spm_stages if vocab.kind == "llama" else _set_bpe_stages)(backend, vocab)

    end_ids = set(vocab.end_ids())
    special, plain = [], []
    for token_id, kind in enumerate(vocab.types):
        if kind not in (CONTROL, UNKNOWN, USER_DEFINED) or vocab.is_padding(token_id):
            continue
        is_special = kind != USER_DEFINED or token_id in end_ids
        token = AddedToken(vocab.tokens[token_id], normalized=False, special=is_special)
        (special if is_special else plain).append(token)
    backend.add_special_tokens(special)
    backend.add_tokens(plain)

    ends = {role: (token_id, vocab.tokens[token_id]) for role, token_id in vocab.special.items()}
    set_begin_and_end(
        backend,
        ends.get("bos") if vocab.add_bos else None,
        ends.get("eos") if vocab.add_eos else None,
    )
    return backend


def set_begin_and_end(
    backend: Any, begin: tuple[int, str] | None, end: tuple[int, str] | None
) -> None:
    """Makes `backend` put the tokens (id, text) around every text it encodes; None puts none."""
    from tokenizers import processors

    # Named by role in the template, for a token's text may contain the template's own signs.
    roles = {"bos": begin, "eos": end}
    single = ["bos"] * (begin is not None) + ["$A"] + ["eos"] * (end is not None)
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=single + [part.replace("$A", "$B") + ":1" for part in single],
        special_tokens=[
            {"id": role, "ids": [token[0]], "tokens": [token[1]]}
            for role, token in roles.items()
            if token is not None
        ],
    )


def _bpe_model(vocab: Vocabulary):
    from tokenizers import models

    return models.BPE(
        vocab={token: index for index, token in enumerate(vocab.tokens)},
        merges=vocab.merges,
        ignore_merges=PRE_TOKENIZERS[vocab.pre].ignore_merges,
    )


def _set_bpe_stages(backend: Any, vocab: Vocabulary) -> None:
    from tokenizers import decoders, normalizers

    entry = PRE_TOKENIZERS[vocab.pre]
    if entry.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = build_pre_tokenizer(entry)
    backend.decoder = decoders.ByteLevel()


def _spm_model(vocab: Vocabulary):
    from tokenizers import models

    return models.BPE(
        vocab={token: index for index, token in enumerate(vocab.tokens)},
        merges=merges_by_score(vocab),
        unk_token=vocab.text("unk"),
        fuse_unk=True,
        byte_fallback=True,
    )


def _set_spm_stages(backend: Any, vocab: Vocabulary) -> None:
    """SentencePiece writes a space as U+2581 and puts one before the text."""
    from tokenizers import decoders, normalizers

    steps = [normalizers.Prepend("▁")] if vocab.add_space_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1, right=0)] if vocab.add_space_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def wrap_tokenizer(backend: Any, **options: Any):
    """`PreTrainedTokenizerFast` around `backend`; decoded text is returned unchanged."""
    from transformers import PreTrainedTokenizerFast

    # The class copies what it is given by writing and reading it as JSON, half of the time that a
    # large vocabulary takes; nobody else holds this backend, so it may be taken as it is.
    backend.__deepcopy__ = lambda memo: backend
    try:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **options
        )
    finally:
        del backend.__deepcopy__
