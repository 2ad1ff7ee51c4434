"""The slicing tool: every value of the dense file comes back, exactly, in some expert."""

import gguf
import numpy as np
import pytest

from ktransformers.util.slice_moe import SCALINGS, main, multiply, slice_moe

HIDDEN, WIDTH, LAYERS, EXPERTS = 64, 512, 2, 8


def random_blocks(kind: str, rows: int, columns: int, rng) -> np.ndarray:
    """Valid blocks of `kind` with random payload and scales of both signs near 1e-2."""
    scaling = SCALINGS[kind.lower()]
    blocks = rng.integers(0, 256, (rows * columns // scaling.values, scaling.bytes), np.uint8)
    for at in scaling.scales:
        scale = (rng.uniform(0.5, 2, len(blocks)) * rng.choice([-1e-2, 1e-2], len(blocks))).astype(
            scaling.dtype
        )
        blocks[:, at : at + scale.itemsize] = scale[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def write_dense(path, kind="Q4_1", architecture="llama", down_scale=None, up_scale=None):
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, HIDDEN), np.float32))
    raw = gguf.GGMLQuantizationType[kind]
    for layer in range(LAYERS):
        for part, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN))):
            blocks = random_blocks("Q4_1", *shape, rng)
            if part == "up" and up_scale is not None:
                blocks[0, :2] = np.array([up_scale], "<f2").view(np.uint8)
            name = f"blk.{layer}.ffn_{part}.weight"
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        down = random_blocks(kind, HIDDEN, WIDTH, rng)
        if down_scale is not None:
            down[0, :2] = np.array([down_scale], "<f2").view(np.uint8)
        data = down.view(SCALINGS[kind.lower()].dtype) if kind in ("F32", "F16") else down
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", data, raw_dtype=raw)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path):
    reader = gguf.GGUFReader(path)
    values = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return reader, values


def rejoined(sliced, layer):
    """gate, up [WIDTH, HIDDEN] and down [HIDDEN, WIDTH] of the experts put side by side."""
    gate, up, down = (sliced[f"blk.{layer}.ffn_{p}_exps.weight"] for p in ("gate", "up", "down"))
    flat = (-1, HIDDEN)
    return gate.reshape(flat), up.reshape(flat), np.concatenate(list(down), axis=1)


# 512 columns over 8 experts are 64 each: one block of 256 needs two experts instead.
@pytest.mark.parametrize("kind", [kind.upper() for kind in SCALINGS])
def test_every_value_is_kept(kind, tmp_path):
    experts = EXPERTS if SCALINGS[kind.lower()].values <= 32 else 2
    dense = read(write_dense(tmp_path / "dense.gguf", kind))[1]
    slice_moe(tmp_path / "dense.gguf", tmp_path / "moe.gguf", experts)
    reader, sliced = read(tmp_path / "moe.gguf")
    for layer in range(LAYERS):
        gate, up, down = rejoined(sliced, layer)
        assert np.array_equal(gate, dense[f"blk.{layer}.ffn_gate.weight"])
        assert np.array_equal(up, dense[f"blk.{layer}.ffn_up.weight"])
        assert np.array_equal(down, dense[f"blk.{layer}.ffn_down.weight"] * np.float32(experts))
        router = sliced[f"blk.{layer}.ffn_gate_inp.weight"]
        assert router.shape == (experts, HIDDEN) and not router.any()
        assert f"blk.{layer}.ffn_down.weight" not in sliced
    assert np.array_equal(sliced["output_norm.weight"], dense["output_norm.weight"])
    assert reader.fields["llama.expert_count"].contents() == experts
    assert reader.fields["llama.expert_used_count"].contents() == experts
    assert reader.fields["llama.feed_forward_length"].contents() == WIDTH // experts
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]


def test_a_scale_that_would_overflow_moves_the_factor_to_up(tmp_path):
    write_dense(tmp_path / "dense.gguf", down_scale=60000)
    dense = read(tmp_path / "dense.gguf")[1]
    slice_moe(tmp_path / "dense.gguf", tmp_path / "moe.gguf", EXPERTS)
    _, up, down = rejoined(read(tmp_path / "moe.gguf")[1], 0)
    assert np.array_equal(down, dense["blk.0.ffn_down.weight"])
    assert np.array_equal(up, dense["blk.0.ffn_up.weight"] * np.float32(EXPERTS))


def test_multiply_keeps_subnormal_scales_exact_and_reports_overflow():
    half = SCALINGS["f16"]
    tiny = np.array([[2**-24, 3 * 2**-24, -0.0]], "<f2")
    assert np.array_equal(multiply(tiny.view(np.uint8), half, 8).view("<f2"), tiny * np.float16(8))
    assert multiply(np.array([[40000]], "<f2").view(np.uint8), half, 2) is None


def test_the_output_is_the_same_every_time(tmp_path):
    write_dense(tmp_path / "dense.gguf")
    for name in ("one", "two"):
        slice_moe(tmp_path / "dense.gguf", tmp_path / name, EXPERTS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3  # no unfinished file stays behind


def test_bad_input_is_refused_with_one_line(tmp_path, capsys):
    write_dense(tmp_path / "dense.gguf")
    write_dense(tmp_path / "qwen.gguf", architecture="qwen2")
    slice_moe(tmp_path / "dense.gguf", tmp_path / "moe.gguf", EXPERTS)
    (tmp_path / "text.gguf").write_text("<html>not a model</html>")
    cases = {
        ("none.gguf", "8"): "no such file",
        ("text.gguf", "8"): "text.gguf",
        ("qwen.gguf", "8"): "architecture 'qwen2'",
        ("moe.gguf", "8"): "a mixture of experts already",
        ("dense.gguf", "6"): "power of two",
        ("dense.gguf", "1"): "power of two",
        ("dense.gguf", "32"): "need a multiple of 1024",
    }
    for (name, experts), message in cases.items():
        out = tmp_path / "out.gguf"
        assert main([str(tmp_path / name), str(out), "--experts", experts]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1, error
        assert not out.exists()
    write_dense(tmp_path / "dense.gguf", down_scale=60000, up_scale=60000)
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / "dense.gguf"), str(tmp_path / "out.gguf")]) == 2
    assert "overflow" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    same = str(tmp_path / "dense.gguf")
    assert main([same, same]) == 2 and "overwrite" in capsys.readouterr().err
