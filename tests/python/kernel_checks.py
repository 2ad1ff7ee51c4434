"""Products and operators of the instruction set in use, against NumPy in float64.

Not collected by itself: test_kernels.py runs this file once per instruction set, in a process of
its own with KT_CPU_ISA set.
"""

import os
import zlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from ktransformers import _core
from tests.support import rounding
from tests.support.blocks import encode

FORMATS = {row["name"]: row for row in _core.formats()}
FLOAT, EXACT, DIGIT = 0, 1, 2
ROWS = (1, 2, 3, 7, 15, 16, 17, 50)
TOKENS = (1, 2, 3, 7, 16, 17, 65, 130)
CONTEXTS = {threads: _core.Context(threads) for threads in (1, 2, 4)}


def rng_of(*key) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def activations(m: int, k: int, rng) -> np.ndarray:
    """Rows as a model has them: a mean, outlier channels, and some of extreme or special shape."""
    x = rng.standard_normal((m, k), np.float32)
    x += np.repeat(rng.standard_normal((1, -(-k // 32)), np.float32) * 3, 32, axis=1)[:, :k]
    x[:, rng.integers(k)] *= 40
    shapes = [
        np.abs,  # all positive: the zero point carries half of the value
        lambda row: -np.abs(row) - 2,
        lambda row: row * 0,
        lambda row: row * 1e-6,
        lambda row: row * 1e4,
        lambda row: np.where(np.arange(k) % 64 < 32, 0, row),  # empty blocks beside full ones
        lambda row: row * np.exp2(rng.integers(-12, 12, k)),
        lambda row: row * 1e-35,  # below what has a reciprocal
        lambda row: np.full(k, 5.0),
    ]
    for i, shape in enumerate(shapes[: max(m - 1, 0)]):
        x[i + 1] = shape(x[i + 1]).astype(np.float32)
    return x


def weights(name: str, rows: int, k: int, rng) -> np.ndarray:
    """Blocks [rows, row_bytes] uint8 with values of everyday size."""
    kind = gguf.GGMLQuantizationType(FORMATS[name]["gguf_id"])
    return encode(rng.standard_normal((rows, k), np.float32) / np.float32(k**0.5), kind, rng)


def dequantized(name: str, blocks: np.ndarray) -> np.ndarray:
    return _core.dequantize(blocks, name).reshape(len(blocks), -1).astype(np.float64)


def linear(blocks, name, k, threads=1, bias=None) -> _core.Linear:
    matrix = _core.Matrix(CONTEXTS[threads], blocks, name, len(blocks), k, "w")
    return _core.Linear(matrix, bias)


def forward(op, x, mark, threads=1) -> np.ndarray:
    marks = np.full(len(x), mark, np.uint8) if np.isscalar(mark) else mark
    return op.forward(CONTEXTS[threads], x, marks)


def nmse(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    error = ((actual - expected) ** 2).sum()
    return float(error / (expected**2).sum()) if expected.any() else float(error)


def worst_row(actual, expected) -> float:
    """The largest error of a row against its own size: one bad token does not hide in the mean."""
    return max(nmse(a, e) for a, e in zip(actual, expected, strict=True))


def widths(name: str) -> tuple[int, ...]:
    block = FORMATS[name]["values_per_block"]
    if block == 1:
        return 1, 5, 31, 32, 33, 100, 300
    return (block, 2 * block, 3 * block, 9 * block) if block < 256 else (block, 2 * block)


@pytest.mark.parametrize("name", FORMATS)
def test_linear(name):
    """Every format at every width, rounding and shape; the same bits whatever surrounds a row."""
    dumped = {}
    for k in widths(name):
        rng = rng_of(name, k)
        blocks, x = weights(name, max(ROWS), k, rng), activations(max(TOKENS), k, rng)
        w = dequantized(name, blocks)
        whole = linear(blocks, name, k)
        full = {mark: forward(whole, x, mark) for mark in (FLOAT, EXACT, DIGIT)}
        assert worst_row(full[FLOAT], x.astype(np.float64) @ w.T) < 1e-11
        if FORMATS[name]["group"] == 0:  # plain floats: no rounding whatever the marks say
            assert np.array_equal(full[EXACT], full[FLOAT])
            assert np.array_equal(full[DIGIT], full[FLOAT])
        else:
            assert worst_row(full[EXACT], rounding.exact(x) @ w.T) < 1e-11
            assert worst_row(full[DIGIT], rounding.digit(x) @ w.T) < 1e-11
            assert nmse(full[EXACT], x.astype(np.float64) @ w.T) < 1e-8
        for mark, expected in full.items():
            check_shapes(whole, blocks, name, x, mark, expected)
        # Rows of one batch may be rounded in different ways.
        marks = np.arange(len(x), dtype=np.uint8) % 3
        mixed = np.stack([full[mark][i] for i, mark in enumerate(marks)])
        assert np.array_equal(forward(whole, x, marks, 2), mixed)
        dumped |= {f"{name}.{k}.{mark}": y for mark, y in full.items()}
    np.savez(Path(os.environ["KT_DUMP"]) / f"{name}.npz", **dumped)


def check_shapes(whole, blocks, name, x, mark, expected):
    k = x.shape[1]
    for rows in ROWS[:-1]:
        part = linear(blocks[:rows], name, k)
        assert np.array_equal(forward(part, x[:17], mark), expected[:17, :rows]), rows
    for tokens in TOKENS:
        for threads in CONTEXTS:
            y = forward(whole, x[:tokens], mark, threads)
            assert np.array_equal(y, expected[:tokens]), (tokens, threads)
    order = rng_of("order").permutation(len(x))
    assert np.array_equal(forward(whole, x[order], mark, 2), expected[order])


@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q8_0", "iq4_xs", "mxfp4", "f16"])
def test_bands_and_panels(name):
    """More row groups and columns than one band and one panel of R16 hold, both with a rest."""
    k, rows = 2304, 300
    rng = rng_of("bands", name)
    blocks, x = weights(name, rows, k, rng), activations(20, k, rng)
    w = dequantized(name, blocks)
    rounds = {FLOAT: plain, EXACT: rounding.exact, DIGIT: rounding.digit}
    for mark, rounded in rounds.items():
        whole = forward(linear(blocks, name, k), x, mark)
        assert worst_row(whole, (plain if name == "f16" else rounded)(x) @ w.T) < 1e-10
        for threads in CONTEXTS:
            op = linear(blocks, name, k, threads)
            for tokens in (1, 2, 4, 7, 20):
                assert np.array_equal(forward(op, x[:tokens], mark, threads), whole[:tokens])
        part = linear(blocks[:260], name, k, 2)
        assert np.array_equal(forward(part, x[:9], mark, 2), whole[:9, :260])


def test_the_emulation_sees_a_wrong_zero_point():
    rng = rng_of("fault")
    blocks, x = weights("q4_1", 50, 288, rng), activations(40, 288, rng)[-20:]
    w, y = dequantized("q4_1", blocks), forward(linear(blocks, "q4_1", 288), x, DIGIT)
    assert worst_row(y, rounding.digit(x) @ w.T) < 1e-11
    assert worst_row(y, rounding.digit(x, zero_shift=1) @ w.T) > 1e-8
    assert nmse(y, rounding.exact(x) @ w.T) > 1e-7


def test_rounding_loses_what_it_is_said_to_lose():
    """Of squared size: halves near nothing, a digit some hundred-thousandths."""
    x = rng_of("loss").standard_normal((64, 1024), np.float32)
    assert nmse(rounding.exact(x), x.astype(np.float64)) < 1e-9
    assert 1e-6 < nmse(rounding.digit(x), x.astype(np.float64)) < 1e-4


@pytest.mark.parametrize("mark", [FLOAT, EXACT, DIGIT])
def test_bias_and_adapter(mark):
    rng = rng_of("adapter", mark)
    blocks, x = weights("q8_0", 50, 96, rng), activations(7, 96, rng)
    bias = rng.standard_normal(50).astype(np.float32)
    a, b = rng.standard_normal((3, 96), np.float32), rng.standard_normal((50, 3), np.float32)
    op = linear(blocks, "q8_0", 96, bias=bias)
    plain = forward(linear(blocks, "q8_0", 96), x, mark)
    with_bias = forward(op, x, mark)
    assert np.array_equal(with_bias, plain + bias)
    op.set_adapter(a, b, 0.5)
    expected = with_bias + 0.5 * (x.astype(np.float64) @ a.T) @ b.T
    for threads in CONTEXTS:
        y = forward(op, x, mark, threads)
        assert nmse(y, expected) < 1e-12
        assert np.array_equal(y[3:4], forward(op, x[3:4], mark, threads))
    for wrong in ((a[:, 1:], b), (a, b[1:]), (a[:2], b), (a[:0], b[:, :0])):
        with pytest.raises(ValueError, match="adapter"):
            op.set_adapter(*wrong)
    assert np.array_equal(forward(op, x, mark), forward(op, x, mark))


def test_what_does_not_fit_is_refused():
    rng = rng_of("refused")
    blocks, context = weights("q4_0", 4, 64, rng), CONTEXTS[1]
    with pytest.raises(ValueError, match="blk.0: 63 columns"):
        _core.Matrix(context, blocks, "q4_0", 4, 63, "blk.0")
    with pytest.raises(ValueError, match="blk.0: 144 bytes, 5 x 64 of q4_0 need 180"):
        _core.Matrix(context, blocks, "q4_0", 5, 64, "blk.0")
    with pytest.raises(ValueError, match="must be positive"):
        _core.Matrix(context, blocks, "q4_0", 0, 64, "blk.0")
    op = linear(blocks, "q4_0", 64)
    with pytest.raises(ValueError, match="bias of 3"):
        linear(blocks, "q4_0", 64, bias=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="expected .rows, 64."):
        forward(op, np.zeros((2, 65), np.float32), EXACT)
    with pytest.raises(ValueError, match="mark 3"):
        forward(op, np.zeros((2, 64), np.float32), 3)
    with pytest.raises(ValueError, match="1 marks for 2 rows"):
        op.forward(context, np.zeros((2, 64), np.float32), np.zeros(1, np.uint8))
    assert forward(op, np.zeros((0, 64), np.float32), EXACT).shape == (0, 4)


# ---- feed-forward ----


def silu(x):
    return x / (1 + np.exp(-x))


class Net:
    """gate, up, down of a SwiGLU as blocks, operators and float64 matrices."""

    def __init__(self, name, hidden, inner, rng, threads):
        shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        self.blocks = {n: weights(name, *shape, rng) for n, shape in shapes.items()}
        self.matrices = {
            n: _core.Matrix(CONTEXTS[threads], self.blocks[n], name, *shape, n)
            for n, shape in shapes.items()
        }
        self.w = {n: dequantized(name, blocks) for n, blocks in self.blocks.items()}

    def mlp(self):
        return _core.Mlp(*(_core.Linear(m) for m in self.matrices.values()))

    def __call__(self, x, round_x, round_inner):
        """x: [m, hidden]; the two functions round what meets gate and up, and what meets down."""
        x = round_x(x)
        inner = silu(x @ self.w["gate"].T) * (x @ self.w["up"].T)
        return round_inner(inner.astype(np.float32)) @ self.w["down"].T


def plain(x):
    return x.astype(np.float64)


# The intermediate activations are float32 in the core and float64 here: a value that falls between
# two steps may be rounded to either, which a digit shows more than a half does.
FFN_LIMITS = {FLOAT: 1e-11, EXACT: 1e-8, DIGIT: 1e-5}
ROUND = {FLOAT: plain, EXACT: rounding.exact, DIGIT: rounding.digit}


@pytest.mark.parametrize("mark", [FLOAT, EXACT, DIGIT])
@pytest.mark.parametrize(
    "name, hidden, inner", [("q4_1", 64, 96), ("f16", 40, 23), ("q8_0", 96, 32)]
)
def test_mlp(name, hidden, inner, mark):
    rng = rng_of("mlp", name)
    x = activations(19, hidden, rng)[[0, 1, 2, 6, *range(9, 19)]]
    results = []
    for threads in CONTEXTS:
        net = Net(name, hidden, inner, rng_of("net", name), threads)
        results.append(forward(net.mlp(), x, mark, threads))
        single = np.concatenate([forward(net.mlp(), x[i : i + 1], mark, threads) for i in range(5)])
        assert np.array_equal(single, results[-1][:5])
    rounds = ROUND[FLOAT if name == "f16" else mark]
    assert nmse(results[0], net(x, rounds, rounds)) < FFN_LIMITS[mark]
    assert all(np.array_equal(results[0], y) for y in results[1:])


class Table:
    def __init__(self, experts, hidden, inner, threads, name="q8_0"):
        self.nets = [
            Net(name, hidden, inner, rng_of("expert", e, hidden, inner), threads)
            for e in range(experts)
        ]
        parts = [[net.matrices[n] for net in self.nets] for n in ("gate", "up", "down")]
        self.core = _core.Experts(*parts)

    def __call__(self, x, ids, share, rounds):
        out = np.zeros(x.shape)
        for t in range(len(x)):
            for e, s in zip(ids[t], share[t], strict=True):
                out[t] += s * self.nets[e](x[t : t + 1], rounds, rounds)[0]
        return out


def routes(kind: str, m: int, k: int, experts: int, rng):
    ids = np.stack([rng.permutation(experts)[:k] for _ in range(m)]).astype(np.int32)
    if kind == "one":
        ids = np.full((m, k), 3, np.int32)  # every assignment, duplicates within a token included
    elif kind == "duplicates":
        ids[:, 1:] = ids[:, :1]
    elif kind == "unused":
        ids %= 2
    return ids, rng.random((m, k), np.float32)


@pytest.mark.parametrize("mark", [FLOAT, EXACT, DIGIT])
@pytest.mark.parametrize("kind", ["spread", "one", "duplicates", "unused"])
def test_experts(kind, mark):
    experts, hidden, inner = 7, 96, 64
    rng = rng_of("experts", kind)
    x = activations(40, hidden, rng)[[0, 1, 2, 6, *range(9, 40)]]
    ids, share = routes(kind, len(x), 3, experts, rng)
    results = []
    for threads in CONTEXTS:
        table = Table(experts, hidden, inner, threads)

        def run(rows, table=table, threads=threads):
            return table.core.forward(
                CONTEXTS[threads], x[rows], ids[rows], share[rows], np.full(len(x), mark)[rows]
            )

        results.append(run(slice(None)))
        for rows in (slice(4, 5), slice(10, 27), [30, 2, 7]):  # neighbours change no bit
            assert np.array_equal(run(rows), results[-1][rows])
    assert nmse(results[0], table(x, ids, share, ROUND[mark])) < FFN_LIMITS[mark]
    assert all(np.array_equal(results[0], y) for y in results[1:])


@pytest.mark.parametrize("mark", [FLOAT, EXACT, DIGIT])
def test_experts_of_few_rows_and_many_columns(mark):
    """Few rows are rounded in parts of their columns, beside the activation function."""
    table = Table(3, 64, 2336, 2)
    rng = rng_of("wide", mark)
    x = activations(16, 64, rng)[10:]
    ids, share = routes("spread", len(x), 2, 3, rng)
    marks = np.full(len(x), mark, np.uint8)
    y = table.core.forward(CONTEXTS[2], x, ids, share, marks)
    assert nmse(y, table(x, ids, share, ROUND[mark])) < FFN_LIMITS[mark]


def test_experts_with_ragged_widths():
    """Intermediate and hidden sizes that are no multiples of 16."""
    rng = rng_of("ragged")
    table = Table(4, 37, 21, 2, "f32")
    x = rng.standard_normal((9, 37), np.float32)
    ids, share = routes("spread", 9, 2, 4, rng)
    y = table.core.forward(CONTEXTS[2], x, ids, share, np.zeros(9, np.uint8))
    assert nmse(y, table(x, ids, share, plain)) < 1e-11


def test_experts_at_the_edges():
    table, context = Table(3, 32, 32, 1), CONTEXTS[1]

    def run(x, ids):
        ones = np.ones(np.shape(ids), np.float32)
        return table.core.forward(context, x, ids, ones, np.ones(len(x), np.uint8))

    x = np.ones((2, 32), np.float32)
    assert run(x[:0], np.zeros((0, 2), np.int32)).shape == (0, 32)
    assert np.array_equal(run(x, np.zeros((2, 0), np.int32)), np.zeros((2, 32)))
    before = run(x, [[0, 1], [2, 0]])
    for bad in (-2, 3, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match=f"expert id {bad} of token 1 is outside 0..2"):
            run(x, [[0, 1], [2, bad]])
    assert np.array_equal(run(x, [[0, 1], [2, 0]]), before)
    # -1 is somebody else's: what is left is the others' sum, or nothing.
    assert np.array_equal(run(x, [[0, 1], [-1, 2]])[1], run(x, [[2], [2]])[1])
    assert np.array_equal(run(x, [[-1, -1], [-1, -1]]), np.zeros((2, 32)))
    with pytest.raises(ValueError, match="must both be"):
        run(x, [[0, 1]])


@pytest.mark.parametrize("shared", [None, "plain", "gated"])
@pytest.mark.parametrize("mark", [FLOAT, EXACT, DIGIT])
def test_moe_block(mark, shared):
    experts, hidden, k = 6, 64, 2
    rng = rng_of("block", shared)
    x = activations(21, hidden, rng)[[0, 1, 2, 6, *range(9, 21)]] / 4
    router_blocks = weights("f32", experts, hidden, rng) * 1
    gate_blocks = weights("f32", 1, hidden, rng)
    results = []
    for threads in CONTEXTS:
        table = Table(experts, hidden, 32, threads)
        net = Net("q8_0", hidden, 96, rng_of("shared"), threads) if shared else None
        router = _core.Router(
            linear(router_blocks, "f32", hidden, threads), num_experts_per_tok=k,
            norm_topk_prob=True,
        )  # fmt: skip
        gate = linear(gate_blocks, "f32", hidden, threads) if shared == "gated" else None
        block = _core.MoeBlock(router, table.core, net.mlp() if net else None, gate)
        results.append(forward(block, x, mark, threads))
        assert np.array_equal(forward(block, x[5:8], mark, threads), results[-1][5:8])
    logits = plain(x) @ dequantized("f32", router_blocks).T
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    top = np.take_along_axis(logits, ids, 1)
    share = np.exp(top - top.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    expected = table(x, ids, share, ROUND[mark])
    if shared:
        factor = 1.0
        if shared == "gated":
            factor = 1 / (1 + np.exp(-plain(x) @ dequantized("f32", gate_blocks).T))
        expected = expected + factor * net(x, ROUND[mark], ROUND[mark])
    assert nmse(results[0], expected) < FFN_LIMITS[mark]
    assert all(np.array_equal(results[0], y) for y in results[1:])


@pytest.mark.parametrize("mark", [EXACT, DIGIT])
def test_a_shared_expert_with_an_adapter_is_run_by_itself_with_the_same_sums(mark):
    """An adapter of zeros changes nothing but the way: not one job with the routed experts."""
    experts, hidden = 5, 64
    rng, context = rng_of("adapted"), CONTEXTS[2]
    x = activations(80, hidden, rng)[9:]
    router = _core.Router(
        linear(weights("f32", experts, hidden, rng), "f32", hidden, 2), num_experts_per_tok=2
    )
    net, results = Net("q8_0", hidden, 96, rng_of("shared"), 2), []
    for rank in (0, 1):
        parts = [_core.Linear(m) for m in net.matrices.values()]
        if rank:
            zeros = np.zeros((rank, hidden), np.float32), np.zeros((96, rank), np.float32)
            parts[0].set_adapter(*zeros, 1.0)
        table = Table(experts, hidden, 32, 2)
        block = _core.MoeBlock(router, table.core, _core.Mlp(*parts), None)
        results.append(block.forward(context, x, np.full(len(x), mark, np.uint8)))
    assert np.abs(results[0]).max() > 0
    assert np.array_equal(*results)
