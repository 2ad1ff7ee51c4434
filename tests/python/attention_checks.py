"""Attention operators of the instruction set in use, against NumPy in float64.

Not collected by itself: test_kernels.py runs this file once per instruction set, in a process of
its own with KT_CPU_ISA set.

The reference takes the operator's own cache content, read back as floats, and checks it by itself:
so that a key that falls between two f16 numbers does not blur the comparison of what follows.
"""

import numpy as np
import pytest

from ktransformers import _core
from tests.python.kernel_checks import (
    CONTEXTS,
    DIGIT,
    EXACT,
    FLOAT,
    dequantized,
    linear,
    nmse,
    plain,
    rng_of,
    weights,
)
from tests.support import rounding

LENGTHS = (1, 63, 64, 65, 128, 200)
CACHES = {
    "f32": ("f32", "f32"),
    "f16": ("f16", "f16"),
    "bf16": ("bf16", "bf16"),
    "q8_0": ("q8_0", "q8_0"),
    "f16+q8_0": ("f16", "q8_0"),
    "i16": ("i16", "i16"),
}
# Largest error of a cached value, against the largest value of its row.
STEPS = {
    "i16": 1.5e-4,
    "f32": 2e-6,
    "f16": 2**-11 + 1e-6,
    "bf16": 2**-8 + 1e-6,
    "q8_0": 0.5 / 127 + 1e-3,
}


def rms(x, weight, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rotated(x, position, inv_freq, interleaved):
    """x: [m, ..., dim]; the first 2 len(inv_freq) values are rotated, in half order afterwards."""
    half = len(inv_freq)
    angle = (position.astype(np.float32)[:, None] * inv_freq[None]).astype(np.float64)
    angle = angle.reshape(len(x), *[1] * (x.ndim - 2), half)
    pairs = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    halves = slice(0, half), slice(half, 2 * half)
    a, b = (x[..., part] for part in (pairs if interleaved else halves))
    out = x.copy()
    out[..., :half] = a * np.cos(angle) - b * np.sin(angle)
    out[..., half : 2 * half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def attend(q, k, v, position):
    """q: [m, heads, d], k: [n, heads, d], v: [n, heads, e] of one sequence -> [m, heads, e]."""
    score = np.einsum("mhd,nhd->mhn", q, k)
    score[np.broadcast_to(np.arange(len(k)) > position[:, None, None], score.shape)] = -np.inf
    p = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("mhn,nhe->mhe", p / p.sum(-1, keepdims=True), v)


class Rows:
    """Rows of several sequences in one forward: chunks of prompts, interleaved."""

    def __init__(self, lengths, rng, start=None):
        start = start or [0] * len(lengths)
        order = np.repeat(np.arange(len(lengths)), lengths)
        order = order[rng.permutation(len(order))].astype(np.int32)
        self.sequence = order
        self.position = np.zeros(len(order), np.int32)
        for s in range(len(lengths)):
            self.position[order == s] = start[s] + np.arange(lengths[s])


def run(op, threads, x, rows, mark, sequences):
    marks = np.full(len(x), mark, np.uint8)
    return op.forward(CONTEXTS[threads], x, rows.position, rows.sequence, marks, sequences, 0)


def make_sequences(pool, lengths):
    sequences = [pool.make_sequence() for _ in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        sequence.extend(length)
    return sequences


class Gqa:
    def __init__(self, heads, kv_heads, dim, hidden=48, rotary=None, normed=False, name="f32"):
        rng = rng_of("gqa", heads, kv_heads, dim)
        self.heads, self.kv_heads, self.dim, self.hidden = heads, kv_heads, dim, hidden
        self.scale = 1.3 / dim**0.5
        rows = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
        self.name = name
        self.blocks = {n: weights(name, r, hidden, rng) for n, r in rows.items()}
        self.blocks["o"] = weights("f32", hidden, heads * dim, rng)
        self.bias = rng.standard_normal(rows["k"]).astype(np.float32)
        self.inv_freq = (100.0 ** (-np.arange((rotary or dim) // 2) * 2 / dim)).astype(np.float32)
        norms = (1 + 0.2 * rng.standard_normal((2, dim))).astype(np.float32)
        self.norms = tuple(norms) if normed else None

    def core(self, threads):
        w = {n: linear(self.blocks[n], self.name, self.hidden, threads) for n in "qv"}
        w["k"] = linear(self.blocks["k"], self.name, self.hidden, threads, self.bias)
        w["o"] = linear(self.blocks["o"], "f32", self.heads * self.dim, threads)
        norms = [_core.RmsNorm(n, 1e-6) for n in self.norms or ()] or [None, None]
        return _core.GqaAttention(
            w["q"], w["k"], w["v"], w["o"], _core.Rope(self.inv_freq), num_heads=self.heads,
            num_kv_heads=self.kv_heads, head_dim=self.dim, scale=self.scale, q_norm=norms[0],
            k_norm=norms[1],
        )  # fmt: skip

    def project(self, x, position, rounds=plain):
        """q, k, v before the cache: [m, heads, dim]."""
        w = {n: dequantized("f32" if n == "o" else self.name, b) for n, b in self.blocks.items()}
        q = (rounds(x) @ w["q"].T).reshape(len(x), self.heads, self.dim)
        k = (rounds(x) @ w["k"].T + self.bias).reshape(len(x), self.kv_heads, self.dim)
        v = (rounds(x) @ w["v"].T).reshape(len(x), self.kv_heads, self.dim)
        if self.norms:
            q, k = rms(q, self.norms[0], 1e-6), rms(k, self.norms[1], 1e-6)
        q, k = (rotated(y, position, self.inv_freq, False) for y in (q, k))
        return q * float(np.float32(self.scale)), k, v

    def expected(self, x, rows, sequences, rounds=plain):
        q, k, v = self.project(x, rows.position, rounds)
        out = np.zeros((len(x), self.heads, self.dim))
        for s, sequence in enumerate(sequences):
            mine = rows.sequence == s
            keys, values = (
                plain(y).reshape(-1, self.kv_heads, self.dim)
                for y in sequence.read(0, sequence.length)
            )
            share = self.heads // self.kv_heads
            keys, values = np.repeat(keys, share, axis=1), np.repeat(values, share, axis=1)
            out[mine] = attend(q[mine], keys, values, rows.position[mine])
        return out.reshape(len(x), -1) @ dequantized("f32", self.blocks["o"]).T, k, v


SHAPES = {
    "grouped": dict(heads=6, kv_heads=2, dim=64),
    "normed": dict(heads=4, kv_heads=4, dim=32, normed=True),
    "one_key_head": dict(heads=5, kv_heads=1, dim=128, rotary=64),
    "dim_8": dict(heads=4, kv_heads=2, dim=8),
    "dim_20": dict(heads=4, kv_heads=2, dim=20, normed=True),
    "dim_40": dict(heads=3, kv_heads=3, dim=40, rotary=16),
}


# Error of attention in int16: a weight is rounded to 1/32767 of the page's largest.
INT16 = 2e-7


@pytest.mark.parametrize("mark", [FLOAT, EXACT, DIGIT], ids=["float", "exact", "digit"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gqa(shape, cache, mark):
    """A cache of tiles is read in int16; one in rows by prompts too, else in floats."""
    gqa, types = Gqa(**SHAPES[shape]), CACHES[cache]
    if "q8_0" in types and gqa.dim % 32:
        pool = _core.KvPool([(96, 96, 2)], *types, 1000)
        with pytest.raises(ValueError, match="multiples of 32"):
            other = Gqa(heads=4, kv_heads=2, dim=48)
            run(other.core(1), 1, np.zeros((1, 48), np.float32), Rows([1], rng_of(0)), FLOAT,
                make_sequences(pool, [1]))  # fmt: skip
        return
    rng = rng_of("gqa rows", shape, cache)
    x = rng.standard_normal((sum(LENGTHS), gqa.hidden), np.float32)
    rows = Rows(LENGTHS, rng)
    results = []
    for threads in CONTEXTS:
        op = gqa.core(threads)
        pool = _core.KvPool([op.kv_widths], *types, 4096)
        sequences = make_sequences(pool, LENGTHS)
        y = run(op, threads, x, rows, mark, sequences)
        # One more token for all of them, over the cache that is there now.
        for s, sequence in enumerate(sequences):
            sequence.extend(LENGTHS[s] + 1)
        more = Rows([1] * len(LENGTHS), rng_of("more"), list(LENGTHS))
        z = run(op, threads, x[: len(LENGTHS)], more, mark, sequences)
        results.append((y, z))
    expected, k, v = gqa.expected(x, rows, sequences)
    most = 1e-11 if cache == "f32" or (mark != DIGIT and cache != "i16") else INT16
    assert nmse(y, expected) < most
    assert nmse(z, gqa.expected(x[: len(LENGTHS)], more, sequences)[0]) < most
    for (a, b), threads in zip(results, CONTEXTS, strict=True):
        assert np.array_equal(a, y) and np.array_equal(b, z), threads
    check_cache(sequences, rows, (k, v), types)


def check_cache(sequences, rows, made, types):
    """What was stored is what was computed, rounded to the cache's type."""
    for s, sequence in enumerate(sequences):
        mine = np.flatnonzero(rows.sequence == s)
        read = sequence.read(0, len(mine))
        for stored, computed, kind in zip(read, made, types, strict=True):
            computed = computed[mine].reshape(len(mine), -1)
            error = np.abs(stored - computed)
            if kind == "q8_0":  # per 32 values
                error, computed = (y.reshape(len(mine), -1, 32) for y in (error, computed))
            top = np.abs(computed).max(axis=-1, keepdims=True)
            assert (error <= STEPS[kind] * top + 1e-6).all()


def test_gqa_rounded_projections():
    gqa = Gqa(heads=4, kv_heads=2, dim=32, hidden=64, name="q4_1")
    rng = rng_of("gqa rounded")
    x, rows = rng.standard_normal((70, 64), np.float32), Rows([70], rng)
    op = gqa.core(2)
    sequences = make_sequences(_core.KvPool([op.kv_widths], "f32", "f32", 128), [70])
    y = run(op, 2, x, rows, EXACT, sequences)
    assert nmse(y, gqa.expected(x, rows, sequences, rounding.exact)[0]) < 1e-11


@pytest.mark.parametrize(
    ("cache", "mark", "lengths", "step"),
    [("f32", FLOAT, (65, 3, 130), 7), ("q8_0", FLOAT, (65, 3, 130), 7),
     ("q8_0", DIGIT, (65, 3, 130), 7), ("i16", EXACT, (65, 3, 1100), 7),
     ("i16", EXACT, (513, 600), 97)],
)  # fmt: skip
def test_gqa_rows_do_not_see_one_another(cache, mark, lengths, step):
    """Alone or in a crowd, whole or in chunks, few rows or many at a time: the same bits."""
    gqa = Gqa(heads=6, kv_heads=2, dim=64)
    rng = rng_of("alone")
    x, rows = rng.standard_normal((sum(lengths), gqa.hidden), np.float32), Rows(lengths, rng)
    op = gqa.core(2)
    pool = _core.KvPool([op.kv_widths], *CACHES[cache], 4096)
    together = run(op, 2, x, rows, mark, make_sequences(pool, lengths))
    for s, length in enumerate(lengths):
        mine = rows.sequence == s
        own = Rows([length], rng)
        own.position, own.sequence = rows.position[mine], np.zeros(length, np.int32)
        alone = run(op, 2, x[mine], own, mark, make_sequences(pool, [length]))
        assert np.array_equal(alone, together[mine])
        sequence = pool.make_sequence()
        for start in range(0, length, step):
            part = Rows([min(step, length - start)], rng, [start])
            sequence.extend(start + len(part.position))
            chunk = run(op, 2, x[mine][start : start + step], part, mark, [sequence])
            assert np.array_equal(chunk, alone[start : start + step])


def test_gqa_refuses_what_does_not_fit():
    gqa = Gqa(heads=4, kv_heads=2, dim=8)
    op = gqa.core(1)
    pool = _core.KvPool([op.kv_widths], "f32", "f32", 128)
    (sequence,) = sequences = make_sequences(pool, [3])
    x = np.ones((2, gqa.hidden), np.float32)

    def call(position, sequence, layer=0, given=sequences, marks=2):
        marks = np.zeros(marks, np.uint8)
        return op.forward(CONTEXTS[1], x, position, sequence, marks, given, layer)

    for position in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="of a sequence of 3"):
            call(position, [0, 0])
    for s in (1, -1):
        with pytest.raises(ValueError, match=f"sequence {s} of 1"):
            call([0, 1], [0, s])
    for layer in (1, -1):
        with pytest.raises(ValueError, match=f"layer {layer} of 1"):
            call([0, 1], [0, 0], layer)
    with pytest.raises(ValueError, match="3 marks for 2 rows"):
        call([0, 1], [0, 0], marks=3)
    with pytest.raises(ValueError, match="1 positions"):
        call([0], [0, 0])
    other = _core.KvPool([(8, 8, 2)], "f32", "f32", 128)
    with pytest.raises(ValueError, match="keeps 16 . 16 values of 2 heads"):
        call([0, 1], [0, 0], given=make_sequences(other, [3]))
    with pytest.raises(ValueError, match="different caches"):
        call([0, 1], [0, 0], given=[sequence, *make_sequences(other, [3])])


class Mla:
    """Heads of 32 + 16, values of 48, a latent of 64; q through a rank of 40 or straight."""

    heads, nope, rope, v, latent, hidden, rank = 4, 32, 16, 48, 64, 80, 40

    def __init__(self, low_rank, kind="f32"):
        rng = rng_of("mla", low_rank)
        self.kind, self.low_rank, self.scale = kind, low_rank, 1.2 / 48**0.5
        q_rows = self.heads * (self.nope + self.rope)
        self.w = {
            "q_a": weights("f32", self.rank, self.hidden, rng),
            "q_b": weights("f32", q_rows, self.rank if low_rank else self.hidden, rng),
            "kv_a": weights("f32", self.latent + self.rope, self.hidden, rng),
            "kv_b": weights(kind, self.heads * (self.nope + self.v), self.latent, rng),
            "o": weights("f32", self.hidden, self.heads * self.v, rng),
        }
        self.q_norm, self.kv_norm = (
            (1 + 0.2 * rng.standard_normal(n)).astype(np.float32) for n in (self.rank, self.latent)
        )
        self.inv_freq = (50.0 ** (-np.arange(8) / 8)).astype(np.float32)

    def floats(self, name):
        return dequantized(self.kind if name == "kv_b" else "f32", self.w[name])

    def core(self, threads, split=False, expand="long_prompts", interleaved=True):
        c = CONTEXTS[threads]

        def op(name):
            return linear(self.w[name], "f32", self.floats(name).shape[1], threads)

        parts = {"kv_a": op("kv_a"), "kv_a_norm": _core.RmsNorm(self.kv_norm, 1e-6), "o": op("o")}
        if self.low_rank:
            parts |= {"q_a": op("q_a"), "q_b": op("q_b")}
            parts["q_a_norm"] = _core.RmsNorm(self.q_norm, 1e-6)
        else:
            parts["q"] = op("q_b")
        if split:  # k_b is stored transposed: [latent, nope]
            whole = self.floats("kv_b").reshape(self.heads, self.nope + self.v, self.latent)
            whole = whole.astype(np.float32)
            k_b = [np.ascontiguousarray(h[: self.nope].T) for h in whole]
            v_b = [np.ascontiguousarray(h[self.nope :]) for h in whole]
            parts["k_b"] = [_core.Matrix(c, m, "f32", self.latent, self.nope, "k_b") for m in k_b]
            parts["v_b"] = [_core.Matrix(c, m, "f32", self.v, self.latent, "v_b") for m in v_b]
        else:
            rows = self.heads * (self.nope + self.v)
            matrix = _core.Matrix(c, self.w["kv_b"], self.kind, rows, self.latent, "kv_b")
            parts["kv_b"] = _core.Linear(matrix)
        return _core.MlaAttention(
            **parts, rope=_core.Rope(self.inv_freq, 1.0, interleaved), num_heads=self.heads,
            kv_lora_rank=self.latent, qk_nope_head_dim=self.nope, qk_rope_head_dim=self.rope,
            v_head_dim=self.v, scale=self.scale, expand=expand,
        )  # fmt: skip

    def expected(self, x, rows, sequences, interleaved=True):
        """The definition (arXiv 2405.04434, 2.1): keys and values expanded for every position."""
        q = plain(x)
        if self.low_rank:
            q = rms(q @ self.floats("q_a").T, self.q_norm, 1e-6)
        q = (q @ self.floats("q_b").T).reshape(len(x), self.heads, -1)
        turned = rotated(q[..., self.nope :], rows.position, self.inv_freq, interleaved)
        q = np.concatenate([q[..., : self.nope], turned], axis=-1) * np.float64(
            np.float32(self.scale)
        )
        out = np.zeros((len(x), self.heads, self.v))
        for s, sequence in enumerate(sequences):
            mine, cached = rows.sequence == s, plain(sequence.read(0, sequence.length)[0])
            kv = cached[:, : self.latent] @ self.floats("kv_b").T
            kv = kv.reshape(len(cached), self.heads, -1)
            shared = np.repeat(cached[:, None, self.latent :], self.heads, axis=1)
            k = np.concatenate([kv[..., : self.nope], shared], axis=-1)
            out[mine] = attend(q[mine], k, kv[..., self.nope :], rows.position[mine])
        return out.reshape(len(x), -1) @ self.floats("o").T

    def cached(self, x, rows, interleaved=True):
        kv = plain(x) @ self.floats("kv_a").T
        turned = rotated(kv[:, None, self.latent :], rows.position, self.inv_freq, interleaved)
        latent = rms(kv[:, : self.latent], self.kv_norm, 1e-6)
        return np.concatenate([latent, turned[:, 0]], axis=1)


FORMS = {
    "absorbed": dict(),
    "expanded": dict(expand="always"),
    "split": dict(split=True),
    "half_order": dict(interleaved=False),
}


@pytest.mark.parametrize("cache", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("low_rank", [True, False], ids=["q_lora", "q"])
def test_mla(low_rank, form, cache):
    mla, rng = Mla(low_rank, "q8_0" if form != "split" else "f32"), rng_of("mla rows", form)
    lengths = (1, 64, 65, 130)
    x = rng.standard_normal((sum(lengths), mla.hidden), np.float32)
    rows, interleaved = Rows(lengths, rng), FORMS[form].get("interleaved", True)
    results = []
    for threads in CONTEXTS:
        op = mla.core(threads, **FORMS[form])
        pool = _core.KvPool([op.kv_widths], cache, cache, 4096)
        sequences = make_sequences(pool, lengths)
        results.append(run(op, threads, x, rows, FLOAT, sequences))
    assert nmse(results[0], mla.expected(x, rows, sequences, interleaved)) < 1e-11
    assert all(np.array_equal(results[0], y) for y in results[1:])
    made = (mla.cached(x, rows, interleaved), np.zeros((len(x), 0)))
    for s, sequence in enumerate(sequences):
        mine = np.flatnonzero(rows.sequence == s)
        stored, none = sequence.read(0, len(mine))
        top = np.abs(made[0][mine]).max(axis=1, keepdims=True)
        assert (np.abs(stored - made[0][mine]) <= STEPS[cache] * top + 1e-6).all()
        assert none.shape == (len(mine), 0)


@pytest.mark.parametrize("cache", ["f16", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_mla_in_int16(form, cache):
    mla, rng = Mla(True), rng_of("mla int16", form)
    lengths = (1, 65, 130, 700)
    x = rng.standard_normal((sum(lengths), mla.hidden), np.float32)
    rows, interleaved = Rows(lengths, rng), FORMS[form].get("interleaved", True)
    results = []
    for threads in CONTEXTS:
        op = mla.core(threads, **FORMS[form])
        pool = _core.KvPool([op.kv_widths], cache, cache, 4096)
        sequences = make_sequences(pool, lengths)
        results.append(run(op, threads, x, rows, EXACT, sequences))
    assert nmse(results[0], mla.expected(x, rows, sequences, interleaved)) < INT16
    assert all(np.array_equal(results[0], y) for y in results[1:])


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_mla_with_a_q8_0_cache(form):
    class Wide(Mla):
        rope = 32

        def __init__(self):
            super().__init__(True)
            self.inv_freq = (50.0 ** (-np.arange(16) / 16)).astype(np.float32)

    mla, rng = Wide(), rng_of("mla q8")
    x, rows = rng.standard_normal((70, mla.hidden), np.float32), Rows([70], rng)
    op = mla.core(2, **FORMS[form])
    sequences = make_sequences(_core.KvPool([op.kv_widths], "q8_0", "q8_0", 128), [70])
    y = run(op, 2, x, rows, FLOAT, sequences)
    assert nmse(y, mla.expected(x, rows, sequences)) < 1e-11


@pytest.mark.parametrize("form", FORMS)
def test_mla_near_exact(form):
    """Halves in every product: far closer than any weight format is to its weights."""
    mla, rng = Mla(True, "q8_0"), rng_of("mla exact")
    x, rows = rng.standard_normal((70, mla.hidden), np.float32), Rows([70], rng)
    op = mla.core(2, **FORMS[form])
    sequences = make_sequences(_core.KvPool([op.kv_widths], "f32", "f32", 128), [70])
    y = run(op, 2, x, rows, EXACT, sequences)
    expected = mla.expected(x, rows, sequences, FORMS[form].get("interleaved", True))
    assert nmse(y, expected) < 1e-8


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_mla_does_not_depend_on_how_many_rows_come_together(form):
    mla, rng = Mla(True, "q8_0"), rng_of("mla chunks")
    x = rng.standard_normal((150, mla.hidden), np.float32)
    op = mla.core(2, **FORMS[form])
    pool = _core.KvPool([op.kv_widths], "f16", "f16", 4096)
    whole = run(op, 2, x, Rows([150], rng), EXACT, make_sequences(pool, [150]))
    for size in (1, 7, 64, 100):
        sequence, parts = pool.make_sequence(), []
        for start in range(0, 150, size):
            rows = Rows([min(size, 150 - start)], rng, [start])
            sequence.extend(start + len(rows.position))
            parts.append(run(op, 2, x[start : start + size], rows, EXACT, [sequence]))
        assert np.array_equal(np.concatenate(parts), whole), size
