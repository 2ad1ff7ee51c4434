"""Damaged and hostile GGUF files: each refused by one line, none costs more than its size.

The files are opened in a process of its own (gguf_worker.py) under a limit of memory.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from ktransformers.checkpoint.gguf import GGUFFile
from tests.tools.fuzz_seeds import ARRAY, FORMATS, STRING, array, file, key, tensor, text

ROOT = Path(__file__).parents[2]
U32, I32, F32, BOOL, U64 = 4, 5, 6, 7, 10
MIB = 1 << 20


def run_worker(*arguments) -> dict:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("gguf_worker.py")), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def header(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def raw_key(name: str | bytes, *numbers: tuple[str, int], rest: bytes = b"") -> bytes:
    return text(name) + b"".join(struct.pack("<" + f, n) for f, n in numbers) + rest


def one_tensor(kind: int, ne: list[int], offset: int = 0, size: int = 4096, **more) -> bytes:
    return file([], [tensor("t", kind, ne, offset)], bytes(size), **more)


MODEL = {
    "general.architecture": (STRING, "llama"),
    "llama.block_count": (U32, 2),
    "llama.embedding_length": (U32, 32),
    "llama.context_length": (U32, 64),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (ARRAY, (I32, [2, 2])),
    "llama.feed_forward_length": (U32, 64),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "llama.rope.freq_base": (F32, 10000.0),
    "llama.expert_count": (U32, 8),
    "llama.expert_used_count": (U32, 2),
    "llama.vocab_size": (U32, 4),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "c", "d"])),
    "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * 4)),
    "tokenizer.ggml.token_type": (ARRAY, (I32, [1] * 4)),
    "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"])),
    "tokenizer.ggml.bos_token_id": (U32, 1),
}


def model(changes: dict | None = None, rows: int = 4, columns: int = 32) -> bytes:
    """MODEL with keys replaced, or dropped (None), and its embedding."""
    keys = []
    for name, value in (MODEL | (changes or {})).items():
        if value is not None:
            kind, content = value
            keys.append(array(name, *content) if kind == ARRAY else key(name, kind, content))
    embedding = tensor("token_embd.weight", 0, [columns, rows], 0)
    return file(keys, [embedding], bytes(rows * columns * 4))


def llama(name: str, kind: int, value) -> bytes:
    return model({f"llama.{name}": (kind, value)})


two = [tensor("s", 0, [16], 0), tensor("t", 0, [16], 32)]  # 64 bytes each: they overlap
deep = struct.pack("<IQ", ARRAY, 1) * 100_000

# name -> (content, words of the refusal; None: it is a valid file)


def many(count: int) -> bytes:
    """As many tensors and keys as are allowed, in as few bytes as possible."""
    start = [key("general.alignment", U32, 8)]
    start += [key(n, *v) for n, v in list(MODEL.items())[:3]]
    keys = start + [key(f"k{i}", 0, 1) for i in range(count - len(start))]
    return file(
        keys, [tensor(f"t{i}", 0, [1], 8 * i) for i in range(count)], bytes(8 * count), 3, 8
    )


RECIPES: dict[str, tuple[bytes, str | None]] = {
    "sound model": (model(), None),
    "65536 keys and tensors": (many(65536), None),
    "version 2": (file([key("general.architecture", STRING, "x")], version=2), "block_count"),
    # what is no GGUF
    "empty": (b"", "is empty"),
    "four bytes": (b"GGUF", "version needs 4 bytes"),
    "wrong magic": (b"FUGG" + model()[4:], "not a GGUF file"),
    "zeros": (bytes(4096), "not a GGUF file"),
    "version 0": (header(0, 0, 0), "version is 0"),
    "version 1": (header(0, 0, 1), "GGUF version 1"),
    "version 4": (header(0, 0, 4), "version is 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "big-endian"),
    # counts
    "tensors 2^64-1": (header(2**64 - 1, 0), "18446744073709551615 tensors"),
    "tensors 2^63": (header(2**63, 0) + bytes(100), "9223372036854775808 tensors"),
    "tensors one more": (header(2, 0) + tensor("t", 0, [8], 0) + bytes(64), "name is empty"),
    "tensors 100000": (header(100_000, 0) + bytes(4_000_000), "at most 65536"),
    "keys 2^64-1": (header(0, 2**64 - 1), "18446744073709551615 keys"),
    "keys 2^32": (header(0, 2**32) + bytes(100), "4294967296 keys"),
    "keys 100000": (header(0, 100_000) + bytes(2_000_000), "at most 65536"),
    "keys one more": (header(0, 2) + key("a", U32, 1) + bytes(32), "key is empty"),
    # keys and values
    "key length 2^64-1": (header(0, 1) + b"\xff" * 8 + bytes(64), "key needs 18446744073709551615"),
    "key length 2^63": (header(0, 1) + struct.pack("<Q", 2**63) + bytes(64), "key needs"),
    "key too long": (header(0, 1) + key("k" * 70_000, U32, 1), "more than the allowed 65535"),
    "key empty": (header(0, 1) + key("", U32, 1) + bytes(8), "key is empty"),
    "key not UTF-8": (file([raw_key(b"a\xff\xfe", ("I", U32), ("I", 1))]), "not printable UTF-8"),
    "key surrogate": (file([raw_key(b"\xed\xa0\x80", ("I", U32), ("I", 1))]), "not printable"),
    "key with newline": (file([key("a\nb", U32, 1)]), "not printable UTF-8"),
    "key with zero byte": (file([key("a\0b", U32, 1)]), "not printable UTF-8"),
    "key twice": (file([key("a", U32, 1), key("a", U32, 1)]), "key 'a' occurs twice"),
    "value type 13": (file([raw_key("a", ("I", 13), ("Q", 0))]), "value type 13"),
    "value type 2^32-1": (file([raw_key("a", ("I", 2**32 - 1), ("Q", 0))]), "4294967295"),
    "value cut": (header(0, 1) + raw_key("a", ("I", U64), ("I", 0)), "value needs 8 bytes"),
    "bool 2": (file([raw_key("a", ("I", BOOL), ("B", 2))]), "boolean 2"),
    "bool in array": (
        file([raw_key("a", ("I", ARRAY), ("I", BOOL), ("Q", 2), ("H", 512))]),
        "boolean 2",
    ),
    "string 2^40": (
        file([raw_key("a", ("I", STRING), ("Q", 2**40), rest=bytes(64))]),
        "string value needs 1099511627776 bytes",
    ),
    "string 2^64-8": (
        file([raw_key("a", ("I", STRING), ("Q", 2**64 - 8), rest=bytes(64))]),
        "string value needs",
    ),
    "array u64 x 2^61": (
        file([raw_key("a", ("I", ARRAY), ("I", U64), ("Q", 2**61), rest=bytes(64))]),
        "2305843009213693952 values",
    ),
    "array u8 x 2^40": (
        file([raw_key("a", ("I", ARRAY), ("I", 0), ("Q", 2**40), rest=bytes(64))]),
        "1099511627776 values",
    ),
    "array string x 2^61": (
        file([raw_key("a", ("I", ARRAY), ("I", STRING), ("Q", 2**61), rest=bytes(64))]),
        "2305843009213693952 strings",
    ),
    "array of empty strings": (
        file([raw_key("a", ("I", ARRAY), ("I", STRING), ("Q", 3_000_000))]) + bytes(24_000_000),
        "at most 2097152 allowed",
    ),
    "array string cut": (
        header(0, 1) + raw_key("a", ("I", ARRAY), ("I", STRING), ("Q", 2)) + text("x")
        + struct.pack("<Q", 5),
        "string in array needs 5 bytes, only 0",
    ),
    "array of arrays": (
        file([raw_key("a", ("I", ARRAY), ("I", ARRAY), ("Q", 1), rest=struct.pack("<IQ", U32, 0))]),
        "array of arrays",
    ),
    "arrays 100000 deep": (file([raw_key("a", ("I", ARRAY), rest=deep)]), "array of arrays"),
    "array type 99": (file([raw_key("a", ("I", ARRAY), ("I", 99), ("Q", 0))]), "value type 99"),
    # alignment
    "alignment 0": (file([key("general.alignment", U32, 0)]), "power of two from 8"),
    "alignment 3": (file([key("general.alignment", U32, 3)]), "power of two from 8"),
    "alignment 4": (file([key("general.alignment", U32, 4)]), "power of two from 8"),
    "alignment 48": (file([key("general.alignment", U32, 48)]), "power of two from 8"),
    "alignment 2^31": (file([key("general.alignment", U32, 2**31)]), "power of two from 8"),
    "alignment 2^40": (file([key("general.alignment", U64, 2**40)]), "must be u32"),
    "alignment text": (file([key("general.alignment", STRING, "32")]), "must be u32"),
    "alignment 2^30": (
        file([key("general.alignment", U32, 2**30)], [tensor("t", 0, [1], 0)], bytes(64)),
        "ends at byte 1073741828",
    ),
    # tensors
    "no dimensions": (one_tensor(0, []), "0 dimensions"),
    "five dimensions": (one_tensor(0, [1] * 5), "5 dimensions"),
    "2^32-1 dimensions": (
        file([], [text("t") + struct.pack("<I", 2**32 - 1)], bytes(4096)),
        "4294967295 dimensions",
    ),
    "dimension 0": (one_tensor(0, [8, 0]), "dimension 1 = 0"),
    "dimensions overflow": (one_tensor(0, [2**32, 2**32]), "makes no tensor"),
    "dimensions wrap to 4": (one_tensor(0, [2**31, 2**31, 4, 1]), "makes no tensor"),
    "dimension 2^64-1": (one_tensor(0, [2**64 - 1]), "makes no tensor"),
    "bytes overflow": (one_tensor(0, [2**62]), "overflows"),
    "bytes wrap to 0": (one_tensor(28, [2**61]), "overflows"),
    "rows not of blocks": (one_tensor(8, [33]), "multiple of 32"),
    "rows not of superblocks": (one_tensor(12, [128, 2]), "multiple of 256"),
    "larger than the file": (one_tensor(0, [2**40]), "ends at byte"),
    "one value too many": (one_tensor(0, [1025]), "ends at byte"),
    "type 4, removed": (one_tensor(4, [32]), "has type q4_2"),
    "type 139, of ik_llama": (one_tensor(139, [256]), "iq4_k"),
    "type 5000": (one_tensor(5000, [32]), "type id 5000"),
    "type 2^32-1": (one_tensor(2**32 - 1, [32]), "type id 4294967295"),
    "offset not aligned": (one_tensor(0, [8], 16), "multiple of the alignment"),
    "offset 2^64-32": (one_tensor(0, [8], 2**64 - 32), "overflows"),
    "offset 2^63": (one_tensor(0, [8], 2**63), "ends at byte"),
    "offset wraps to the header": (one_tensor(0, [8], 2**64 - 64), "overflows"),
    "offset behind the end": (one_tensor(0, [8], 4096), "ends at byte"),
    "tensors overlap": (file([], two, bytes(4096)), "overlap"),
    "tensors the same": (file([], [two[0], tensor("t", 0, [16], 0)], bytes(4096)), "overlap"),
    "tensor twice": (
        file([], [tensor("t", 0, [8], 0), tensor("t", 0, [8], 32)], bytes(64)),
        "tensor 't' occurs twice",
    ),
    "tensor name empty": (file([], [tensor("", 0, [8], 0)], bytes(64)), "tensor name is empty"),
    "tensor name 300": (file([], [tensor("t" * 300, 0, [8], 0)], bytes(64)), "allowed 255"),
    "tensor name 2^60": (
        file([], [struct.pack("<Q", 2**60)], bytes(4096)),
        "tensor name needs 1152921504606846976 bytes",
    ),
    "tensor name not UTF-8": (file([], [tensor("t", 0, [8], 0).replace(b"t", b"\xc0")], bytes(64)),
                              "not printable UTF-8"),
    # well formed, and no model
    "no architecture": (model({"general.architecture": None}), "no key 'general.architecture'"),
    "architecture a number": (model({"general.architecture": (U32, 1)}), "must be a string"),
    "architecture a path": (model({"general.architecture": (STRING, "../x")}), "plain name"),
    "architecture empty": (model({"general.architecture": (STRING, "")}), "plain name"),
    "no layers": (model({"llama.block_count": None}), "no key 'llama.block_count'"),
    "0 layers": (llama("block_count", U32, 0), "is 0, must be 1 to 1024"),
    "513513 layers": (llama("block_count", U32, 513513), "must be 1 to 1024"),
    "layers 2^64-1": (llama("block_count", U64, 2**64 - 1), "must be 1 to 1024"),
    "layers -1": (llama("block_count", I32, -1), "is -1, must be 1 to 1024"),
    "layers a float": (llama("block_count", F32, 2.0), "must be an integer"),
    "layers an array": (llama("block_count", ARRAY, (U32, [2])), "must be an integer"),
    "embedding 2^31": (llama("embedding_length", U32, 2**31), "must be 1 to 1048576"),
    "heads 2^31": (llama("attention.head_count", U32, 2**31), "must be 0 to 16384"),
    "heads of 3 layers": (llama("attention.head_count_kv", ARRAY, (I32, [1] * 3)), "2 layers"),
    "heads of -1": (llama("attention.head_count_kv", ARRAY, (I32, [1, -1])), "is -1 in layer 1"),
    "heads as text": (llama("attention.head_count_kv", ARRAY, (STRING, ["1", "2"])), "integers"),
    "eps NaN": (llama("attention.layer_norm_rms_epsilon", F32, float("nan")), "nan"),
    "eps -1": (llama("attention.layer_norm_rms_epsilon", F32, -1.0), "must be 0 to 1"),
    "rope base 0": (llama("rope.freq_base", F32, 0.0), "must be 1 to"),
    "rope base inf": (llama("rope.freq_base", F32, float("inf")), "is inf"),
    "unknown float NaN": (llama("something.new", F32, float("nan")), "must be finite"),
    "unknown floats inf": (llama("some", ARRAY, (F32, [0.0, float("inf")])), "must be finite"),
    "more experts used than there": (llama("expert_used_count", U32, 9), "has 8 experts"),
    "no expert used": (llama("expert_used_count", U32, 0), "has 8 experts"),
    "groups do not divide": (llama("expert_group_count", U32, 3), "does not divide"),
    "groups 2^31": (llama("expert_group_count", U32, 2**31), "must be 0 to"),
    "tokens fewer than rows": (model(rows=5), "has 5 rows, the vocabulary has 4"),
    "tokens more than rows": (model(rows=3), "has 3 rows, the vocabulary has 4"),
    "columns": (model(columns=16), "has 16 columns"),
    "vocab_size": (llama("vocab_size", U32, 5), "vocab_size' is 5"),
    "tokens empty": (model({"tokenizer.ggml.tokens": (ARRAY, (STRING, []))}), "is empty"),
    "tokens numbers": (model({"tokenizer.ggml.tokens": (ARRAY, (U32, [1] * 4))}), "of strings"),
    "tokens one string": (model({"tokenizer.ggml.tokens": (STRING, "abcd")}), "of strings"),
    "scores 3": (model({"tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * 3))}), "has 3 values"),
    "scores ints": (model({"tokenizer.ggml.scores": (ARRAY, (I32, [0] * 4))}), "array of f32"),
    "token types bool": (model({"tokenizer.ggml.token_type": (ARRAY, (BOOL, [1] * 4))}), "of i32"),
    "merges numbers": (model({"tokenizer.ggml.merges": (ARRAY, (U32, [1]))}), "of strings"),
    "bos 4": (model({"tokenizer.ggml.bos_token_id": (U32, 4)}), "is 4, the vocabulary has 4"),
    "eos -2": (model({"tokenizer.ggml.eos_token_id": (I32, -2)}), "is -2"),
    "eos none": (model({"tokenizer.ggml.eos_token_id": (U32, 2**32 - 1)}), None),
    "eos text": (model({"tokenizer.ggml.eos_token_id": (STRING, "</s>")}), "must be an integer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("recipes")
    for name, (content, _) in RECIPES.items():
        (folder / f"{name}.gguf").write_bytes(content)
    return run_worker("open", folder)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, verdicts):
    kind, message, seconds, growth = verdicts[f"{name}.gguf"]
    words = RECIPES[name][1]
    assert kind == ("accepted" if words is None else "refused"), message
    assert words is None or words in message, message
    assert seconds < 1 and growth < 64 * MIB


def test_the_worker_sees_a_large_allocation(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    code = (
        "import sys, gguf_worker as w\n"
        "base = w.mapped_bytes()\n"
        "def grab(size):\n"
        "    w.open_model = lambda path: bytearray(size << 20)\n"
        "    return w.limited(w.Path(sys.argv[1]), base)\n"
        "assert grab(100)[1].startswith('MemoryError'), grab(100)\n"
        "assert grab(10)[1].startswith('AttributeError')\n"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "x"], env=env, check=True)


def small_model(path: Path) -> Path:
    """As the gguf package writes it: all value types, arrays, three tensor types."""
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_uint32("llama.block_count", 1)
    out.add_uint32("llama.embedding_length", 32)
    out.add_float32("llama.rope.freq_base", 10000.0)
    out.add_int64("x.i64", -1)
    out.add_bool("x.flag", True)
    out.add_array("x.list", [1, 2, 3])
    out.add_tokenizer_model("gpt2")
    out.add_token_list(["a", "b"])
    out.add_token_scores([0.0, 1.0])
    out.add_bos_token_id(1)
    rows = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    out.add_tensor("token_embd.weight", rows)
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1):
        out.add_tensor(kind.name, gguf.quantize(rows, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_every_truncation_and_every_flip_of_the_header(tmp_path):
    path = small_model(tmp_path / "m.gguf")
    end = min(t.offset for t in GGUFFile(path).tensors.values())
    size = path.stat().st_size
    found = run_worker("mutate", path, end)
    assert not found["failed"], dict(list(found["failed"].items())[:5])
    # Only the padding behind the last tensor may be missing.
    last = max(t.offset + t.nbytes for t in GGUFFile(path).tensors.values())
    assert found["accepted cuts"] == [f"cut {n}" for n in range(last, size)]
    counts = found["counts"]
    assert sum(counts.values()) >= size + 8 * end
    # Most of a header matters; flips inside names and numbers make another valid file.
    assert counts["refused"] > 3 * end and counts["accepted"] > end


def test_every_value_of_a_model_under_every_type_and_extreme(tmp_path):
    extremes = {
        kind: [0, 1, 2 ** (8 * struct.calcsize(f)) - 1]
        if f.isupper()
        else [-(2 ** (8 * struct.calcsize(f) - 1)), 2 ** (8 * struct.calcsize(f) - 1) - 1, -1]
        for kind, f in FORMATS.items()
        if f in "BbHhIiQq"
    }
    extremes |= {F32: [float("nan"), float("-inf"), 3e38], 12: [float("inf"), 1e308], BOOL: [True]}
    extremes[STRING] = ["", "x" * 100_000, b"\xff\x00"]
    number = 0
    for name in MODEL:
        for kind, values in extremes.items():
            for value in values:
                (tmp_path / f"{number}.gguf").write_bytes(model({name: (kind, value)}))
                (tmp_path / f"{number}a.gguf").write_bytes(
                    model({name: (ARRAY, (kind, [value] * 3))})
                )
                number += 1
    found = run_worker("open", tmp_path)
    failed = {name: f for name, f in found.items() if f[0] == "failed"}
    assert len(found) == 2 * number > 1000 and not failed, dict(list(failed.items())[:5])
    assert sum(f[0] == "refused" for f in found.values()) > number
    assert max(f[3] for f in found.values()) < 64 * MIB


# ---- the gguf package's verdict on the same files; where it differs is written down here ----

# Well-formed containers that make no model: the package takes no second look.
NO_MODEL = {"version 2", *list(RECIPES)[list(RECIPES).index("no architecture") :]}
# It walks these one value at a time, longer than anyone waits.
SLOW = {"65536 keys and tensors", "tensors 100000", "array u8 x 2^40", "array of empty strings"}
STRICTER = {
    "keys one more", "key too long", "key empty", "key with newline", "key with zero byte",
    "bool 2", "bool in array", "string 2^40", "string 2^64-8", "array string cut",
    "array of arrays", "array type 99", "alignment 4", "alignment 2^31",
    "no dimensions", "five dimensions", "dimension 0", "offset not aligned", "offset 2^64-32",
    "offset wraps to the header", "tensors overlap", "tensors the same", "tensor name empty",
    "tensor name 300",
}  # fmt: skip


def package_verdicts(folder: Path) -> dict[str, str]:
    code = (
        "import json, resource, signal, sys, gguf\n"
        "from pathlib import Path\n"
        "class Slow(Exception): pass\n"
        "def alarm(*_): raise Slow\n"
        "signal.signal(signal.SIGALRM, alarm)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "found = {}\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    signal.setitimer(signal.ITIMER_REAL, 1)\n"
        "    try:\n"
        "        gguf.GGUFReader(path)\n"
        "        found[path.stem] = 'accepted'\n"
        "    except (Slow, MemoryError):\n"
        "        found[path.stem] = 'hangs'\n"
        "    except BaseException:\n"
        "        found[path.stem] = 'refused'\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_verdicts_differ_from_the_gguf_package_only_where_written_down(tmp_path):
    for name, (content, _) in RECIPES.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    theirs = package_verdicts(tmp_path)
    compared = RECIPES.keys() - SLOW
    valid = {name for name in compared if RECIPES[name][1] is None}
    assert valid and {theirs[name] for name in valid} == {"accepted"}
    refused = compared - valid - NO_MODEL
    assert {name for name in refused if theirs[name] == "accepted"} == STRICTER
