"""Opening models: files, parts, folders; metadata and data equal to the gguf package's reader."""

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from ktransformers import _core
from ktransformers.checkpoint.gguf import GGUFFile, open_model
from ktransformers.errors import UserError
from tests.support import smollm2


def write_model(path: Path, **changes) -> Path:
    """A small model as the gguf package writes it; `changes` replace or drop (None) keys."""
    keys = {
        "block_count": 2,
        "context_length": 128,
        "embedding_length": 32,
        "attention.head_count": 4,
    }
    out = gguf.GGUFWriter(str(path), changes.pop("arch", "llama"))
    tokens = changes.pop("tokens", ["<s>", "a", "ä", "\N{GRINNING FACE}"])
    for key, value in (keys | changes).items():
        if value is not None:
            out.add_uint32(f"llama.{key}", value)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens)
    out.add_token_scores([0.5] * len(tokens))
    out.add_bool("some.flag", True)
    out.add_array("some.numbers", [1, -2, 3])
    out.add_float64("some.double", 0.1)
    out.add_int8("some.small", -5)
    out.add_tensor("token_embd.weight", np.arange(4 * 32, dtype=np.float32).reshape(4, 32))
    out.add_tensor("half", np.arange(6, dtype=np.float16).reshape(3, 2))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def write_part(path: Path, number: int, count: int, tensors: dict, total: int | None = None):
    out = _core.GgufWriter(str(path))
    if number == 0:
        out.add("general.architecture", "string", "llama")
        out.add("llama.block_count", "u32", 1)
        out.add("llama.embedding_length", "u32", 32)
    out.add("split.no", "u16", number)
    out.add("split.count", "u16", count)
    if total is not None:
        out.add("split.tensors.count", "i32", total)
    for name, array in tensors.items():
        out.add_tensor(name, "f32", array.shape)
    for array in tensors.values():
        out.write(array)
    out.finish()


def assert_same_as_gguf_package(path: Path) -> int:
    """Every key and tensor; returns the number of both."""
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    fields = {name: f for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    assert set(ours.metadata) == set(fields)
    for name, field in fields.items():
        value = ours.metadata[name]
        value = value.tolist() if isinstance(value, np.ndarray) else value
        assert value == field.contents(), name
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.type == tensor.tensor_type.name.lower()
        assert (info.nbytes, info.offset) == (tensor.n_bytes, tensor.data_offset)
        assert np.array_equal(ours.data(tensor.name), tensor.data.reshape(-1).view(np.uint8))
    return len(fields) + len(theirs.tensors)


def test_reads_what_the_gguf_package_writes(tmp_path):
    path = write_model(tmp_path / "m.gguf")
    assert assert_same_as_gguf_package(path) == 12 + 2
    model = open_model(path)
    assert model.architecture == "llama"
    assert model.metadata["tokenizer.ggml.tokens"] == ["<s>", "a", "ä", "\N{GRINNING FACE}"]
    assert model.metadata["some.flag"] is True
    assert model.metadata["some.double"] == 0.1
    assert model.metadata["some.numbers"].tolist() == [1, -2, 3]
    assert model.metadata.type_of("some.numbers") == "[i32]"
    assert model.dequantize("half").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert model.tensors["token_embd.weight"].shape == (4, 32)
    assert model.bytes_total == 4 * 32 * 4 + 6 * 2
    assert "absent" not in model.metadata and 3 not in model.metadata
    with pytest.raises(KeyError):
        model.metadata["absent"]


def test_the_gguf_package_reads_what_we_write(tmp_path):
    out = _core.GgufWriter(str(tmp_path / "w.gguf"), alignment=64)
    values = {
        "u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 2**32 - 1, "i32": -(2**31),
        "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.25, "f64": 0.1, "bool": True, "string": "ü",
    }  # fmt: skip
    for name, value in values.items():
        out.add(f"one.{name}", name, value)
        out.add(f"many.{name}", f"[{name}]", [value, value])
        out.add(f"none.{name}", f"[{name}]", [])
    out.add("numpy", "[f32]", np.linspace(0, 1, 5, dtype=np.float32))
    data = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    blocks = gguf.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    out.add_tensor("t", "f32", data.shape)
    out.add_tensor("q", "q8_0", (2, 64))
    out.add_tensor("n", "i32", (4,))
    out.write(data)
    out.write(blocks[:1])
    out.write(blocks[1:])
    out.write(np.arange(4, dtype=np.int32))
    assert not (tmp_path / "w.gguf").exists(), "visible before it is complete"
    out.finish()
    theirs = gguf.GGUFReader(tmp_path / "w.gguf")
    for name, value in values.items():
        assert theirs.fields[f"one.{name}"].contents() == value
        assert theirs.fields[f"many.{name}"].contents() == [value, value]
        # The gguf package tells no element type of an empty array; ours keeps it.
        assert GGUFFile(tmp_path / "w.gguf").metadata.type_of(f"none.{name}") == f"[{name}]"
    assert theirs.alignment == 64
    assert np.array_equal(theirs.tensors[0].data, data)
    assert np.array_equal(theirs.tensors[1].data.reshape(-1), blocks.reshape(-1))
    ours = GGUFFile(tmp_path / "w.gguf")
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(ours.dequantize("q"), expected)
    assert np.array_equal(ours.dequantize("n"), [0, 1, 2, 3])
    assert os.listdir(tmp_path) == ["w.gguf"]


def test_the_real_model_reads_as_with_the_gguf_package():
    path = smollm2.dense_path()
    assert assert_same_as_gguf_package(path) == 33 + 272
    assert open_model(path).architecture == "llama"


def test_bytes_that_are_no_utf8_survive(tmp_path):
    out = _core.GgufWriter(str(tmp_path / "w.gguf"))
    out.add("t", "[string]", [b"\xff\xfe", "ok"])
    out.finish()
    read = GGUFFile(tmp_path / "w.gguf").metadata["t"]
    assert read[0].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    again = _core.GgufWriter(str(tmp_path / "again.gguf"))
    again.add("t", "[string]", read)
    again.finish()
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "w.gguf").read_bytes()


def test_data_is_a_view_that_outlives_the_file(tmp_path):
    model = GGUFFile(write_model(tmp_path / "m.gguf"))
    view = model.data("token_embd.weight")
    assert not view.flags.writeable and not view.flags.owndata
    with pytest.raises(ValueError):
        view[0] = 1
    with pytest.raises(ValueError):
        view.flags.writeable = True
    del model
    assert view.view(np.float32)[-1] == 4 * 32 - 1


def test_typed_access(tmp_path):
    model = GGUFFile(write_model(tmp_path / "m.gguf"))
    assert model.integer("llama.block_count", 1, 10) == 2
    assert model.number("some.double") == 0.1
    assert model.number("llama.block_count") == 2.0
    assert model.integer("absent", default=7) == 7
    assert model.text("absent", default=None) is None
    with pytest.raises(UserError, match=r"m\.gguf: key 'llama\.block_count' is 2, must be 3 to 9"):
        model.integer("llama.block_count", 3, 9)
    with pytest.raises(UserError, match="must be a string"):
        model.text("llama.block_count")
    with pytest.raises(UserError, match="must be an integer"):
        model.integer("some.double")
    with pytest.raises(UserError, match="has no key 'absent'"):
        model.integer("absent")
    with pytest.raises(UserError, match="has no tensor 'blk.0.x'"):
        model.data("blk.0.x")


def test_unknown_architecture_is_named(tmp_path):
    path = write_model(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="'llama' is not supported; supported are gpt9, qwen2"):
        open_model(path, ["qwen2", "gpt9"])
    assert open_model(path, ["llama"]).architecture == "llama"


def test_a_folder_is_its_one_model(tmp_path):
    write_model(tmp_path / "m.gguf")
    (tmp_path / "mmproj-m-f16.gguf").write_bytes(b"a vision projector, not looked at")
    (tmp_path / "README.md").write_text("x")
    assert open_model(tmp_path).path == str(tmp_path / "m.gguf")
    write_model(tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"holds 2 models.*: m\.gguf, other\.gguf"):
        open_model(tmp_path)


def split_model(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for i, path in enumerate(paths):
        write_part(path, i, count, {f"t{i}": np.full((2, 32), i, np.float32)}, total=count)
    return paths


def test_a_split_model_opens_by_folder_and_by_any_part(tmp_path):
    paths = split_model(tmp_path)
    for place in [tmp_path, *paths]:
        model = open_model(place)
        assert model.paths == [str(p) for p in paths]
        assert model.tensors["t2"].file == str(paths[2])
        assert model.dequantize("t2").tolist() == [[2.0] * 32] * 2
    write_model(tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"holds 2 models.*m-00001-of-00003\.gguf, other\.gguf"):
        open_model(tmp_path)


def test_parts_missing_swapped_doubled(tmp_path):
    paths = split_model(tmp_path)
    kept = [p.read_bytes() for p in paths]
    paths[1].unlink()
    with pytest.raises(UserError, match=r"1 of the 3 parts of m is missing: m-00002-of-00003"):
        open_model(tmp_path)
    paths[1].write_bytes(kept[2])
    paths[2].write_bytes(kept[1])
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf: says it is part 3 of 3"):
        open_model(paths[0])
    paths[1].write_bytes(kept[0])
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf: says it is part 1 of 3"):
        open_model(paths[0])
    paths[1].write_bytes(kept[1][:-40])
    paths[2].write_bytes(kept[2])
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf: tensor 't1' ends at byte"):
        open_model(paths[0])
    alone = tmp_path / "renamed.gguf"
    alone.write_bytes(kept[0])
    with pytest.raises(UserError, match="split into 3 files, 1 was given"):
        open_model(alone)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("m.gguf", b"", "is empty"),
        ("m.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("m.gguf", b"\n<!DOCTYPE html><html><head>", "web page"),
        ("m.gguf", b"<html>", "web page"),
        ("m.gguf", b'{"error":"Repository not found"}', "error message"),
        ("m.gguf", b"Entry not found", "refusal"),
        ("m.gguf", b"PK\x03\x04", "ZIP"),
        ("m.gguf", b"\x80\x02}q\x00.", "pickle"),
        ("m.gguf", b"GGU", "not a GGUF file"),
        ("m.gguf", b"GGUF", "version needs 4 bytes"),
        ("m.gguf", b"lmgg1234", "GGML"),
        ("m.safetensors", None, "a safetensors checkpoint by its name and was not opened"),
        ("pytorch_model.bin", None, "a PyTorch checkpoint by its name and was not opened"),
        ("m.PT", None, "was not opened"),
        ("m.pkl", None, "was not opened"),
        ("m.gguf.incomplete", b"GGUF", "unfinished download"),
        ("m.gguf.part", b"GGUF", "unfinished download"),
        ("m-00004-of-00003.gguf", b"GGUF", "part 4 of 3 cannot be"),
        ("m-00001-of-99999.gguf", b"GGUF", "cannot be"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path, name, content, words):
    path = tmp_path / name
    if content is None:  # unopened: a file that nobody may read would fail otherwise
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_model(path)
    assert words in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_places_without_a_model(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_model(tmp_path / "none.gguf")
    with pytest.raises(UserError, match="is empty; download"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no \.gguf file, only model\.safetensors"):
        open_model(tmp_path)
    (tmp_path / "m.gguf.part").write_bytes(b"")
    with pytest.raises(UserError, match=r"only the unfinished download m\.gguf\.part"):
        open_model(tmp_path)
    with pytest.raises(UserError):
        open_model("x" * 5000)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(UserError, match="not a regular file"):
        open_model(tmp_path / "pipe.gguf")


def test_a_file_that_shrinks_in_use_is_named(tmp_path):
    path = write_model(tmp_path / "m.gguf")
    code = (
        "import os, sys\n"
        "from ktransformers.checkpoint.gguf import GGUFFile\n"
        "view = GGUFFile(sys.argv[1]).data('token_embd.weight')\n"
        "os.truncate(sys.argv[1], 0)\n"
        "print(view.sum())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {path}: the file shrank")


def test_importing_imports_no_torch():
    code = (
        "import sys, ktransformers.checkpoint.gguf\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
