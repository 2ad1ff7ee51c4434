"""Writes the seed corpus and the dictionary of tests/cpp/fuzz/fuzz_gguf.cpp.

    python tests/tools/fuzz_seeds.py FOLDER      # FOLDER/corpus/*, FOLDER/gguf.dict

Small valid files by hand (plain struct, no package), so that mutations start deep in the parser:
every value type, arrays, both versions, several tensor types, alignments, a model that passes the
second check, and a split one.
"""

import struct
import sys
from pathlib import Path

SEPARATOR = b"\n--next part--\n"
FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def payload(kind: int, value) -> bytes:
    return text(value) if kind == STRING else struct.pack("<" + FORMATS[kind], value)


def key(name: str, kind: int, value) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload(kind, value)


def array(name: str, kind: int, values: list) -> bytes:
    head = text(name) + struct.pack("<IIQ", ARRAY, kind, len(values))
    return head + b"".join(payload(kind, value) for value in values)


def tensor(name: str, kind: int, ne: list[int], offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def file(keys: list[bytes], tensors=(), data=b"", version=3, alignment=32) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    out += b"".join(keys) + b"".join(tensors)
    return out + bytes(-len(out) % alignment) + data


def model_keys(arch: str, tokens: int) -> list[bytes]:
    return [
        key("general.architecture", STRING, arch),
        key(f"{arch}.block_count", 4, 2),
        key(f"{arch}.embedding_length", 4, 32),
        key(f"{arch}.context_length", 4, 128),
        key(f"{arch}.attention.head_count", 4, 4),
        array(f"{arch}.attention.head_count_kv", 5, [2, 2]),
        key(f"{arch}.attention.layer_norm_rms_epsilon", 6, 1e-5),
        key(f"{arch}.rope.freq_base", 6, 10000.0),
        key(f"{arch}.expert_count", 4, 8),
        key(f"{arch}.expert_used_count", 4, 2),
        key(f"{arch}.expert_group_count", 4, 4),
        key(f"{arch}.expert_group_used_count", 4, 2),
        array("tokenizer.ggml.tokens", STRING, [f"t{i}" for i in range(tokens)]),
        array("tokenizer.ggml.scores", 6, [0.0] * tokens),
        array("tokenizer.ggml.token_type", 5, [1] * tokens),
        array("tokenizer.ggml.merges", STRING, ["t 0", "t 1"]),
        key("tokenizer.ggml.bos_token_id", 4, 1),
    ]


def seeds() -> dict[str, bytes]:
    every = [key(f"k{kind}", kind, 1) for kind in FORMATS]
    arrays = [array(f"a{kind}", kind, [1, 0, 1]) for kind in FORMATS]
    strings = [key("s", STRING, "text"), array("as", STRING, ["", "ä", b"\xff"]), array("e", 4, [])]
    split = [
        file(
            [key("general.architecture", STRING, "llama")] * (i == 0)
            + [key("split.no", 2, i), key("split.count", 2, 2), key("split.tensors.count", 5, 2)],
            [tensor(f"t{i}", 0, [8], 0)],
            bytes(32),
        )
        for i in range(2)
    ]
    types = [
        (0, 4, 1),
        (1, 2, 1),
        (2, 18, 32),
        (8, 34, 32),
        (12, 144, 256),
        (14, 210, 256),
        (27, 8, 1),
    ]
    infos, data = [], b""
    for kind, each, values in types:
        infos.append(tensor(f"t{kind}", kind, [values, 2], len(data)))
        data += bytes(each * 2)
        data += bytes(-len(data) % 32)
    embedding = tensor("token_embd.weight", 0, [32, 4], 0)
    return {
        "empty": file([]),
        "version2": file([key("a", 4, 1)], version=2),
        "values": file(every),
        "arrays": file(arrays + strings),
        "types": file([key("general.alignment", 4, 32)], infos, data),
        "dims": file([], [tensor("t", 0, [2, 2, 2, 1], 0)], bytes(32)),
        "aligned": file(
            [key("general.alignment", 4, 8)], [tensor("t", 0, [2], 0)], bytes(8), alignment=8
        ),
        "model": file(model_keys("llama", 4), [embedding], bytes(4 * 32 * 4)),
        "vocabulary": file(model_keys("qwen2", 4)),
        "split": SEPARATOR.join(split),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "page": b"<!DOCTYPE html><html></html>",
        "safetensors": struct.pack("<Q", 2) + b'{"a":{}}',
    }


def dictionary() -> list[bytes]:
    numbers = [0, 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
    words = [struct.pack("<Q", n) for n in numbers]
    words += [struct.pack("<I", n) for n in (8, 9, 10, 12, 16, 18, 27, 28, 39, 40, 135)]
    names = "block_count embedding_length vocab_size attention.head_count expert_count".split()
    words += [text(f"llama.{name}") for name in names]
    names = "general.alignment general.architecture split.no split.count split.tensors.count llama "
    names += "tokenizer.ggml.tokens tokenizer.ggml.eos_token_id token_embd.weight"
    words += [text(name) for name in names.split()]
    return [b"GGUF", SEPARATOR, struct.pack("<II", ARRAY, STRING), *words]


def main() -> None:
    folder = Path(sys.argv[1])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, content in seeds().items():
        (corpus / name).write_bytes(content)
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in dictionary()]
    (folder / "gguf.dict").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
