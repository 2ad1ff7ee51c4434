"""A tokenizer from the files of a Hugging Face folder, read as data.

In this order: tokenizer.json; tokenizer.model (SentencePiece, or tiktoken ranks under that name);
tiktoken.model or one *.tiktoken; vocab.json with merges.txt. tokenizer_config.json tells the
special tokens, and nothing else of it is followed: no class of its naming is looked up.
"""

from __future__ import annotations

from typing import Any

from ktransformers.checkpoint import metadata as md
from ktransformers.checkpoint import tokenizer_ranks as ranks
from ktransformers.checkpoint.config_files import ModelFolder
from ktransformers.checkpoint.pretokenizers import PRE_TOKENIZERS
from ktransformers.checkpoint.tokenizer_build import (
    build_backend,
    set_begin_and_end,
    wrap_tokenizer,
)
from ktransformers.checkpoint.tokenizer_spm_model import read_spm_model
from ktransformers.checkpoint.tokenizer_vocab import (
    CONTROL,
    MAX_TOKEN_CHARS,
    MAX_TOKENS,
    NORMAL,
    USER_DEFINED,
    Vocabulary,
    check_scores,
    check_types,
    checked_tokens,
)
from ktransformers.errors import UserError

# Reserved ids between the vocabulary and the last added token: at most this many.
_MAX_GAP = 4096
_ROLES = ("bos", "eos", "unk", "pad")
# How each model type cuts text, for files that do not say beside a GGUF that does not either.
PRE_OF_TYPE = {
    "llama": "llama-bpe", "qwen2": "qwen2", "qwen2_moe": "qwen2", "qwen3": "qwen2",
    "qwen3_moe": "qwen2", "kimi_k2": "kimi-k2", "deepseek_v2": "deepseek-llm",
    "deepseek_v3": "deepseek-v3", "glm4_moe": "glm4",
}  # fmt: skip


def tokenizer_from_folder(folder: ModelFolder, gguf: Any = None):
    """The folder's tokenizer as `PreTrainedTokenizerFast`, or None when it holds no such file.

    gguf: where its metadata name a pre-tokenizer, that is used for files that do not.
    Raises: UserError naming the file for everything that cannot be used.
    """
    settings = folder.json("tokenizer_config.json") or {}
    roles = special_texts(folder, settings)
    added = _added_tokens(folder, settings)
    if (data := folder.text("tokenizer.json")) is not None:
        backend = load_json_tokenizer(data, folder)
        _fit_begin_and_end(backend, settings, roles)
    else:
        vocab = _vocabulary(folder, gguf, settings, roles, added)
        if vocab is None:
            return None
        backend = _guarded(lambda: build_backend(vocab), folder)
        roles = {role: vocab.text(role) for role in _ROLES if vocab.text(role)} | roles
    _add_missing(backend, added, folder)
    _check_roles(backend, roles, folder)
    options: dict[str, Any] = {f"{role}_token": text for role, text in roles.items()}
    if "eos" in roles:
        options.setdefault("pad_token", roles["eos"])
    longest = settings.get("model_max_length")
    if isinstance(longest, int) and 0 < longest < 2**31:
        options["model_max_length"] = longest
    return _guarded(lambda: wrap_tokenizer(backend, padding_side="left", **options), folder)


def vocabulary_of(folder: ModelFolder, gguf: Any = None) -> Vocabulary | None:
    """The folder's vocabulary from tokenizer.model, ranks or vocab.json; None without such a file.

    Raises: UserError naming the file for everything that cannot be used.
    """
    settings = folder.json("tokenizer_config.json") or {}
    roles, added = special_texts(folder, settings), _added_tokens(folder, settings)
    return _vocabulary(folder, gguf, settings, roles, added)


def _guarded(build: Any, folder: ModelFolder):
    """Runs `build`; what the tokenizers library has against the files becomes one line."""
    try:
        return build()
    except UserError:
        raise
    except BaseException as error:
        # The library's own failures arrive as Exception, its panics as a class outside of it.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{folder.path}: the tokenizer files cannot be used: {text}") from error


def load_json_tokenizer(data: str, folder: ModelFolder):
    """`tokenizers.Tokenizer` of a tokenizer.json's text. Raises: UserError."""
    from tokenizers import Tokenizer

    backend = _guarded(lambda: Tokenizer.from_str(data), folder)
    backend.no_padding()
    backend.no_truncation()
    return backend


def _text_of(value: Any) -> str | None:
    """The text of a token given as a string or as a serialised AddedToken."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def special_texts(folder: ModelFolder, settings: dict) -> dict[str, str]:
    """Role -> text from tokenizer_config.json, then special_tokens_map.json."""
    older = folder.json("special_tokens_map.json") or {}
    found = {}
    for role in _ROLES:
        key = f"{role}_token"
        text = _text_of(settings[key]) if key in settings else _text_of(older.get(key))
        if text:
            found[role] = text
    return found


def _check_roles(backend: Any, roles: dict[str, str], folder: ModelFolder) -> None:
    """Begin and end tokens must exist; others that do not are dropped (transformers would add them
    behind the vocabulary, where the model has no row).
    """
    for role, text in list(roles.items()):
        if backend.token_to_id(text) is not None:
            continue
        if role in ("bos", "eos"):
            raise UserError(
                f"{folder.path}: {role}_token {md.shown(text)} is not in the vocabulary"
            )
        del roles[role]


def _added_tokens(folder: ModelFolder, settings: dict) -> dict[int, dict]:
    """Id -> serialised AddedToken from tokenizer_config.json, then added_tokens.json."""
    where = folder.path / "tokenizer_config.json"
    found: dict[int, dict] = {}
    given = settings.get("added_tokens_decoder")
    for key, value in (given if isinstance(given, dict) else {}).items():
        text = _text_of(value)
        if not str(key).isdecimal() or int(key) >= MAX_TOKENS or text is None:
            raise UserError(f"{where}: added_tokens_decoder: {md.shown(key)}: {md.shown(value)}")
        found[int(key)] = value if isinstance(value, dict) else {"content": text}
    for text, token_id in (folder.json("added_tokens.json") or {}).items():
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKENS or not text:
            bad = f"{md.shown(text)}: {md.shown(token_id)}"
            raise UserError(f"{folder.path / 'added_tokens.json'}: {bad} is no token and id")
        found.setdefault(token_id, {"content": text})
    return found


def _add_missing(backend: Any, added: dict[int, dict], folder: ModelFolder) -> None:
    """Adds tokens that only tokenizer_config.json lists; they must land on the ids it gives."""
    from tokenizers import AddedToken

    for token_id, value in sorted(added.items()):
        text = _text_of(value)
        if backend.token_to_id(text) is None:
            flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
            chosen = {flag: bool(value[flag]) for flag in flags if flag in value}
            backend.add_tokens([AddedToken(text, **chosen)])
        if backend.token_to_id(text) != token_id:
            raise UserError(
                f"{folder.path}: token {md.shown(text)} has id {backend.token_to_id(text)}, but "
                f"tokenizer_config.json says {token_id}"
            )


def _fit_begin_and_end(backend: Any, settings: dict, roles: dict[str, str]) -> None:
    """Begin and end tokens where tokenizer_config.json decides about them.

    Tokenizers of class Llama put a begin token unless told otherwise; the others follow
    tokenizer.json unless the settings speak.
    """
    is_llama = "Llama" in str(settings.get("tokenizer_class", ""))
    bos, eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    if bos is None and eos is None and not is_llama:
        return
    wanted = {"bos": is_llama if bos is None else bos is True, "eos": eos is True}
    found = {
        role: (backend.token_to_id(roles[role]), roles[role])
        for role, on in wanted.items()
        if on and role in roles and backend.token_to_id(roles[role]) is not None
    }
    set_begin_and_end(backend, found.get("bos"), found.get("eos"))


def _vocabulary(
    folder: ModelFolder, gguf: Any, settings: dict, roles: dict, added: dict[int, dict]
) -> Vocabulary | None:
    """What the folder's vocabulary file holds, with the added tokens at their places."""
    spm = None
    model = folder.read("tokenizer.model")
    named = "tiktoken.model" if folder.has("tiktoken.model") else folder.only(".tiktoken")
    if model is not None and not ranks.looks_like_ranks(model):
        spm = read_spm_model(model, str(folder.path / "tokenizer.model"))
        tokens, merges = spm["tokens"], []
    elif model is not None:
        tokens, merges = ranks.read_ranks(model, str(folder.path / "tokenizer.model"))
    elif named is not None:
        tokens, merges = ranks.read_ranks(folder.read(named), str(folder.path / named))
    elif folder.has("vocab.json") and folder.has("merges.txt"):
        vocab, pairs = folder.text("vocab.json"), folder.text("merges.txt")
        tokens, merges = ranks.read_vocab_and_merges(vocab, pairs, str(folder.path))
    else:
        return None
    types = list(spm["types"]) if spm else [NORMAL] * len(tokens)
    scores = list(spm["scores"]) if spm else []
    _place_added(tokens, types, scores, added, folder)
    kind = "llama" if spm else "gpt2"

    def fail(problem: str) -> UserError:
        return UserError(f"{folder.path}: {problem}")

    tokens = checked_tokens(tokens, MAX_TOKEN_CHARS[kind], fail)
    check_types(types, tokens, fail)
    check_scores(scores, lambda problem: fail(f"scores: {problem}"))

    special = dict(spm["special"]) if spm else {}
    index = {token: token_id for token_id, token in enumerate(tokens)}
    special |= {role: index[text] for role, text in roles.items() if text in index}
    bos, eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    pre = "" if spm else _pre_of(folder, gguf)
    return Vocabulary(
        kind=kind,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores,
        merges=merges,
        special=special,
        add_bos=bool(spm) or PRE_TOKENIZERS[pre].add_bos if bos is None else bos is True,
        add_eos=eos is True,
        add_space_prefix=bool(spm and spm["add_space_prefix"]),
        where=str(folder.path),
    )


def _place_added(
    tokens: list[str], types: list[int], scores: list[float], added: dict, folder: ModelFolder
) -> None:
    """Writes added tokens at their ids, in place; gaps behind the end are filled with padding."""
    place = {token: token_id for token_id, token in enumerate(tokens)}
    for token_id, value in sorted(added.items()):
        text = _text_of(value)
        if place.get(text, token_id) != token_id or token_id > len(tokens) + _MAX_GAP:
            raise UserError(
                f"{folder.path}: added token {md.shown(text)} cannot have id {token_id}"
            )
        while len(tokens) <= token_id:
            tokens.append(f"[PAD{len(tokens)}]")
            types.append(NORMAL)
            if scores:
                scores.append(0.0)
        tokens[token_id], place[text] = text, token_id
        types[token_id] = CONTROL if value.get("special") else USER_DEFINED


def _pre_of(folder: ModelFolder, gguf: Any) -> str:
    pre = md.get_str(gguf, "tokenizer.ggml.pre", 64, default="") if gguf is not None else ""
    if pre in PRE_TOKENIZERS and pre:
        return pre
    model_type = (folder.json("config.json") or {}).get("model_type")
    if model_type in PRE_OF_TYPE:
        return PRE_OF_TYPE[model_type]
    raise UserError(
        f"{folder.path}: how a {md.shown(model_type)} model cuts text is not known; "
        "give a folder with a tokenizer.json"
    )
