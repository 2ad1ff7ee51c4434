"""A folder's tokenizer files as the `tokenizer.*` keys of a GGUF file. Data only; no torch.

How text is cut before merging has a name in GGUF and is a program in tokenizer.json. The name is
found by what the programs do: the first candidate whose tokenizer gives the folder's own ids for
texts chosen to tell all candidates apart.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ktransformers.checkpoint.chat_template import MAX_TEMPLATE_BYTES
from ktransformers.checkpoint.config_files import ModelFolder
from ktransformers.checkpoint.pretokenizers import PRE_TOKENIZERS
from ktransformers.checkpoint.tokenizer_build import build_backend
from ktransformers.checkpoint.tokenizer_files import (
    PRE_OF_TYPE,
    load_json_tokenizer,
    special_texts,
    vocabulary_of,
)
from ktransformers.checkpoint.tokenizer_vocab import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from ktransformers.errors import UserError

_PROBES = (
    "Hello world, it's 2024! 3333 33333 3.14159 1,000,000",
    "don't DON'T we'll I'M camelCase HTTPServer snake_case",
    "\n\n\n  \t a\n b\r\n  c   ",
    "汉字和かな漢字 한국어 Привет мир ελληνικά العربية",
    "if (x==1) {return y[0]+=2;} // <tag> https://a.b/c?d=e&f",
    "e\u0301 é ½ ² Ⅷ 😀👍🏽 … “quoted” — dash",
)
_BYTE_NAMES = {f"<0x{byte:02X}>" for byte in range(256)}


def tokenizer_keys(folder: ModelFolder, vocab_size: int, model_type: str) -> dict[str, tuple]:
    """{key: (GGUF type, value)}. vocab_size: rows of the embedding; ids without a token are filled
    up with "[PADn]". Raises: UserError."""
    settings = folder.json("tokenizer_config.json") or {}
    if (text := folder.text("tokenizer.json")) is not None:
        vocab = _from_json(folder, text, settings, model_type)
    else:
        vocab = vocabulary_of(folder)
        if vocab is None:
            raise UserError(f"{folder.path}: holds no tokenizer file; download the whole folder")
    if len(vocab.tokens) > vocab_size:
        raise UserError(
            f"{folder.path}: the tokenizer has {len(vocab.tokens)} tokens, the model {vocab_size}"
        )
    spare = range(len(vocab.tokens), vocab_size)
    keys: dict[str, tuple[str, Any]] = {
        "tokenizer.ggml.model": ("string", vocab.kind),
        "tokenizer.ggml.pre": ("string", vocab.pre or "default"),
        "tokenizer.ggml.tokens": ("[string]", [*vocab.tokens, *(f"[PAD{i}]" for i in spare)]),
        "tokenizer.ggml.token_type": ("[i32]", [*vocab.types, *([UNUSED] * len(spare))]),
    }
    if vocab.kind == "llama":
        keys["tokenizer.ggml.scores"] = ("[f32]", [*vocab.scores, *([-1e4] * len(spare))])
        keys["tokenizer.ggml.add_space_prefix"] = ("bool", vocab.add_space_prefix)
    else:
        keys["tokenizer.ggml.merges"] = ("[string]", [f"{a} {b}" for a, b in vocab.merges])
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if role in vocab.special:
            keys[f"tokenizer.ggml.{name}_token_id"] = ("u32", vocab.special[role])
    keys["tokenizer.ggml.add_bos_token"] = ("bool", vocab.add_bos)
    keys["tokenizer.ggml.add_eos_token"] = ("bool", vocab.add_eos)
    template = folder.templates().get("default") or settings.get("chat_template")
    if isinstance(template, str) and len(template.encode()) <= MAX_TEMPLATE_BYTES:
        keys["tokenizer.chat_template"] = ("string", template)
    return keys


def _from_json(folder: ModelFolder, text: str, settings: dict, model_type: str) -> Vocabulary:
    data = folder.json("tokenizer.json")
    where = folder.path / "tokenizer.json"
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{where}: only BPE vocabularies are known, give a folder with one")
    backend = load_json_tokenizer(text, folder)
    ids = dict(model["vocab"])
    added = {t["content"]: t for t in data.get("added_tokens") or () if isinstance(t, dict)}
    ids |= {name: token["id"] for name, token in added.items()}
    if any(type(n) is not int or not 0 <= n < 1 << 21 for n in ids.values()):
        raise UserError(f"{where}: a token's id is out of range")
    spm = bool(model.get("byte_fallback"))
    count = max(ids.values(), default=-1) + 1
    tokens = [f"[PAD{i}]" for i in range(count)]
    types = [UNUSED] * count
    for name, token_id in ids.items():
        tokens[token_id] = name
        kind = NORMAL if not spm or name not in _BYTE_NAMES else BYTE
        if name in added:
            kind = CONTROL if added[name].get("special") else USER_DEFINED
        types[token_id] = UNKNOWN if spm and name == model.get("unk_token") else kind
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    roles = special_texts(folder, settings)
    special = {role: ids[name] for role, name in roles.items() if name in ids}
    begin = backend.encode("a").ids
    fields = {
        "tokens": tokens, "types": types, "special": special, "where": str(where),
        "add_bos": bool(begin) and begin[0] == special.get("bos", -1),
        "add_eos": len(begin) > 1 and begin[-1] == special.get("eos", -1),
    }  # fmt: skip
    if spm:
        rank = {a + b: i for i, (a, b) in enumerate(merges)}
        scores = [-float(rank.get(name, len(rank))) for name in tokens]
        prefix = backend.encode("a", add_special_tokens=False).tokens[:1] == ["▁a"]
        return Vocabulary("llama", "", scores=scores, add_space_prefix=prefix, **fields)
    vocab = Vocabulary("gpt2", "gpt-2", merges=merges, **fields)
    ignores = bool(model.get("ignore_merges"))
    return _with_pre(vocab, backend, model_type, ignores, where)


def _cuts(backend: Any) -> list:
    """What the tokenizer makes of the probes: pieces, which no vocabulary hides, and ids."""
    found: list = [backend.encode(text, add_special_tokens=False).ids for text in _PROBES]
    for text in _PROBES:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        if backend.pre_tokenizer is not None:
            found.append([piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)])
    return found


def _with_pre(
    vocab: Vocabulary, backend: Any, model_type: str, folder_ignores_merges: bool, where: Path
) -> Vocabulary:
    """The vocabulary with the pre-tokenizer's name. Raises: UserError where none does the same."""
    wanted = _cuts(backend)
    first = PRE_OF_TYPE.get(model_type)
    tried = set()
    for name in ([first] if first else []) + list(PRE_TOKENIZERS):
        entry = PRE_TOKENIZERS[name]
        if not name or entry in tried:
            continue
        tried.add(entry)
        candidate = dataclasses.replace(vocab, pre=name)
        if (
            entry.ignore_merges == folder_ignores_merges
            and _cuts(build_backend(candidate)) == wanted
        ):
            return candidate
    raise UserError(
        f"{where}: cuts text in a way that has no name in GGUF files; loading the folder itself "
        "works, converting it does not"
    )
