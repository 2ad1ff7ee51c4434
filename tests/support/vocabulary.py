"""A tiny byte-level BPE tokenizer as GGUF metadata: every byte, a few dozen merges, ChatML."""

MERGES = (
    "Ġ t|h e|i n|Ġ a|r e|o n|Ġt he|e r|Ġ s|a t|n d|Ġ w|o r|Ġ o|e n|Ġ c|i s|i t|a n|e s|Ġ b|o u|"
    "Ġ f|e d|Ġ m|in g|Ġ p|Ġ in|a l|Ġa nd|a r|Ġt o|Ġo f|Ġ d|l l|o m|Ġ h|i c|r o|Ġ l|a s|Ġ re|en t|"
    "i on|Ġ n|l e|v e|o t|Ġ g|u t|s t|i l|Ġ e|Ġ y|Ġy ou|i m|e t|c e|o w|Ġt h|c h|l o|Ġ is|Ġb e|i d|"
    "Ġf or|u r|Ġth at|g h|a m"
).split("|")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = SPECIAL.index("<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NORMAL, CONTROL = 1, 3


def byte_characters() -> list[str]:
    """The printable character that stands for each of the 256 bytes in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [table[byte] for byte in range(256)]


def metadata(pre: str) -> dict:
    """The tokenizer.* keys; `pre` names the pre-tokenizer."""
    tokens = [*SPECIAL, *byte_characters(), *(pair.replace(" ", "") for pair in MERGES)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


SIZE = len(SPECIAL) + 256 + len(MERGES)
