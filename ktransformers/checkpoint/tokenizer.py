"""A transformers tokenizer from GGUF metadata alone, or from a Hugging Face folder as data.

Nothing is imported or executed on behalf of the model. `transformers` and `tokenizers` are imported
inside the functions.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ktransformers.checkpoint import metadata as md
from ktransformers.checkpoint.chat_template import set_chat_template
from ktransformers.checkpoint.config_files import open_folder
from ktransformers.checkpoint.tokenizer_build import build_backend, wrap_tokenizer
from ktransformers.checkpoint.tokenizer_files import tokenizer_from_folder
from ktransformers.checkpoint.tokenizer_vocab import Vocabulary, read_vocabulary

log = logging.getLogger("ktransformers.tokenizer")


def build_tokenizer(gguf: Any, model_path: str | Path | None = None):
    """`transformers.PreTrainedTokenizerFast` for the model in `gguf`, chat template included.

    model_path: a Hugging Face folder or Hub name whose tokenizer files win over the metadata.
    Raises: UserError for metadata or files that do not describe a usable tokenizer.
    """
    tokenizer = folder = None
    if model_path is not None:
        folder = open_folder(model_path)
        tokenizer = tokenizer_from_folder(folder, gguf)
        if tokenizer is None:
            log.warning("%s: no tokenizer files; using the GGUF's tokenizer", folder.path)
    if tokenizer is None:
        vocab = read_vocabulary(gguf)
        tokenizer = wrap_tokenizer(build_backend(vocab), **tokenizer_options(gguf, vocab))
    set_chat_template(tokenizer, gguf, folder)
    return tokenizer


def tokenizer_options(gguf: Any, vocab: Vocabulary) -> dict[str, Any]:
    """Keyword arguments of the transformers tokenizer that the metadata determine."""
    options: dict[str, Any] = {"padding_side": "left"}
    for name in ("bos", "eos", "unk", "pad"):
        if vocab.text(name) is not None:
            options[f"{name}_token"] = vocab.text(name)
    if "eos_token" in options:
        # Batches need some padding token; masked positions never reach the result.
        options.setdefault("pad_token", options["eos_token"])
    architecture = gguf.metadata.get("general.architecture")
    context = md.get_int(gguf, f"{architecture}.context_length", 1, 2**31 - 1, default=None)
    if context is not None:
        options["model_max_length"] = context
    return options
