"""Pre-tokenizers by the name that GGUF files carry in `tokenizer.ggml.pre`.

A byte-level BPE vocabulary is only right together with the way text was cut before its merges were
learned. GGUF stores a name for that way; this table gives the cuts. Each entry is a list of steps
that are applied one after the other, every step cutting the pieces of the one before:

    "digits"     every numeric character alone
    other text   a regular expression (Oniguruma); matches and what lies between them become pieces

and after the last step bytes are mapped to the printable alphabet of byte-level vocabularies.

Sources: the published tokenizer.json of each family; where llama.cpp's list of expressions differs
from it, the published one holds (checked with the token vectors, tests/python).
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _cl100k(letters: str, digits: str) -> str:
    """The expression GPT-4's first tokenizer began: letters with one leading sign, then digits."""
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
    )


def _o200k(word_start: str, word_end: str, digits: str, line_end: str, suffix: str) -> str:
    """Words cut at a change of case, as in GPT-4o's tokenizer."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}{word_start}*{word_end}+{suffix}|{lead}{word_start}+{word_end}*{suffix}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+{line_end}*|{_TAIL}"
    )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_HAN_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_NOT_HAN_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"


def _ranges(text: str) -> str:
    """Inside of a character class from code points in hexadecimal: "41-5A B5" -> A to Z, µ."""
    return "".join(
        "-".join(rf"\x{{{point}}}" for point in part.split("-")) for part in text.split()
    )


# The letters with case, the signs and the scripts that DeepSeek's first tokenizers list one by one
# (fewer than today's Unicode has).
_CASED = _ranges(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F "
    "386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD "
    "1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 "
    "1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 "
    "2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 "
    "2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 "
    "A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_SIGNS = _ranges("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_EAST_ASIAN = f"[{_ranges('4E00-9FA5 800-4E00 AC00-D7FF')}]+"
_CHINESE_JAPANESE = f"[{_ranges('4E00-9FA5 3040-30FF')}]+"
_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _TAIL
)


@dataclass(frozen=True)
class PreTokenizer:
    """How one family cuts text, and what its vocabulary implies beside it.

    steps: see the module's head.  nfc: text is composed (Unicode NFC) first.
    ignore_merges: a piece that is a token as a whole is taken without merging (tiktoken's rule).
    add_bos: whether the begin token is added where the metadata do not say.
    """

    steps: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_LLAMA3 = (_cl100k(r"\p{L}", r"\p{N}{1,3}"),)
_QWEN2 = (_cl100k(r"\p{L}", r"\p{N}"),)
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}",
)
_GPT4O = (_o200k(_UPPER, _LOWER, r"\p{N}{1,3}", r"[\r\n/]", f"{_CONTRACTIONS}?"),)
_TEKKEN = (_o200k(_UPPER, _LOWER, r"\p{N}", r"[\r\n/]", ""),)
_KIMI_K2 = (
    r"\p{Han}+|"
    + _o200k(_NOT_HAN_UPPER, _NOT_HAN_LOWER, r"\p{N}{1,3}", r"[\r\n]", f"{_CONTRACTIONS}?"),
)
_DEEPSEEK_V3_STEPS = (r"\p{N}{1,3}", _CHINESE_JAPANESE, _DEEPSEEK_V3)

_TABLE: dict[tuple[str, ...], PreTokenizer] = {
    ("gpt-2", "phi-2", "mpt", "olmo", "mellum", "gigachat", "exaone4", "trillion"): PreTokenizer(
        (_GPT2,)
    ),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): (
        PreTokenizer(("digits", _GPT2))
    ),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"): PreTokenizer(
        _LLAMA3, ignore_merges=True, add_bos=True
    ),
    ("dbrx", "smaug-bpe"): PreTokenizer(_LLAMA3),
    ("glm4", "glm5"): PreTokenizer(_LLAMA3, ignore_merges=True),
    ("qwen2", "deepseek-r1-qwen"): PreTokenizer(_QWEN2, nfc=True),
    ("stablelm2", "megrez", "hunyuan", "grok-2"): PreTokenizer(_QWEN2),
    ("qwen35",): PreTokenizer(_QWEN35),
    ("deepseek-llm",): PreTokenizer(
        (r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?[{_SIGNS}]+", r"\s+$", _EAST_ASIAN, "digits")
    ),
    ("deepseek-coder",): PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, "digits")
    ),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm"): PreTokenizer(_DEEPSEEK_V3_STEPS),
    ("gpt-4o", "llama4"): PreTokenizer(_GPT4O),
    ("tekken",): PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True),
    ("kimi-k2",): PreTokenizer(_KIMI_K2, ignore_merges=True),
    ("default", ""): PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ("falcon",): PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
}

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    name: entry for names, entry in _TABLE.items() for name in names
}


def known_names() -> list[str]:
    """The names a GGUF file may carry, sorted; "" (no name given) is not listed."""
    return sorted(name for name in PRE_TOKENIZERS if name)


def build_pre_tokenizer(entry: PreTokenizer):
    """`tokenizers.pre_tokenizers.Sequence` of the entry's steps; ends in the byte alphabet."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as pre

    steps = []
    for step in entry.steps:
        if step == "digits":
            steps.append(pre.Digits(individual_digits=True))
        else:
            steps.append(pre.Split(Regex(step), behavior="isolated"))
    steps.append(pre.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre.Sequence(steps)
