"""The torch emulation of the rounding equals the kernels', value by value.

A linear whose Q8_0 weights are the identity hands the rounded activations out.
"""

import gguf
import numpy as np
import pytest
import torch

from bench.emulation import emulated, round_digit, round_exact
from ktransformers import _core
from tests.support.families import families
from tests.support.miniatures import miniature, write
from tests.support.reference import Reference

EXACT, DIGIT = 1, 2


def rounded_by_the_core(x: np.ndarray, rounding: int) -> np.ndarray:
    """x: [rows, k] float32, k a multiple of 32."""
    k = x.shape[1]
    blocks = gguf.quantize(np.eye(k, dtype=np.float32) * 127, gguf.GGMLQuantizationType.Q8_0)
    context = _core.Context(1)
    matrix = _core.Matrix(context, blocks.reshape(-1), "q8_0", k, k, "identity")
    marks = np.full(len(x), rounding, np.uint8)
    return _core.Linear(matrix).forward(context, x, marks) / np.float32(127)


def activations(k: int) -> np.ndarray:
    """Rows as models have them, and rows that are hard to round."""
    rng = np.random.default_rng(k)
    rows = [rng.standard_normal(k) * 10.0**power for power in (-3, 0, 2)]
    outlier = rng.standard_normal(k)
    outlier[k // 3] = 3000.0
    one_sided = np.abs(rng.standard_normal(k)) + 5.0
    sparse = np.where(rng.random(k) < 0.02, rng.standard_normal(k), 0.0)
    quiet = rng.standard_normal(k) * np.repeat(10.0 ** -np.arange(k // 32), 32)
    rows += [outlier, one_sided, -one_sided, sparse, quiet, np.zeros(k), np.full(k, -2.5)]
    return np.stack(rows).astype(np.float32)


@pytest.mark.parametrize("k", [32, 256, 576])
@pytest.mark.parametrize(("rounding", "emulate"), [(EXACT, round_exact), (DIGIT, round_digit)])
def test_the_kernels_round_as_the_emulation_says(rounding, emulate, k):
    x = activations(k)
    mine = rounded_by_the_core(x, rounding)
    theirs = emulate(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(mine, theirs, rtol=3e-7, atol=0)


def test_the_digit_is_coarser_than_the_halves_and_not_by_more_than_its_range_allows():
    x = activations(256)[:3]
    span = x.max(axis=1) - x.min(axis=1)
    for emulate, steps in ((round_exact, 30000), (round_digit, 200)):
        error = np.abs(emulate(torch.from_numpy(x)).numpy() - x).max(axis=1)
        assert (error <= span / steps).all()
        assert (error > span / steps / 20).all()


def test_emulating_is_undone_and_refuses_what_it_does_not_cover(tmp_path):
    ids = list(range(3, 103))
    path = write(miniature("llama", "Q8_0"), tmp_path / "dense.gguf")
    model = Reference.load(path, families()["llama"])
    plain = model.logits(ids)
    with emulated(model.model, "auto"):
        rounded = model.logits(ids)
    assert np.array_equal(model.logits(ids), plain)
    gap = np.abs(rounded - plain).max(axis=1)
    assert 0 < gap[:64].max() < 0.02 < gap[64:].max()  # the first 64 positions are near exact
    moe = Reference.load(write(miniature("mixtral"), tmp_path / "moe.gguf"), families()["mixtral"])
    with pytest.raises(ValueError, match="dense"), emulated(moe.model, "auto"):
        pass
    with pytest.raises(ValueError, match="'f32'"), emulated(model.model, "f32"):
        pass
