"""Every weight format, bit for bit, against the gguf package's NumPy dequantisers.

The blocks are random bytes whose half-precision scales are replaced by chosen ones: zeros of both
signs, subnormals, the extremes, ordinary values, and, in a test of their own, NaN and infinity.
"""

import sys
import threading

import gguf
import numpy as np
import pytest
from gguf import quants

from ktransformers import _core

FORMATS = {row["name"]: row for row in _core.formats()}
PACKED = [name for name, row in FORMATS.items() if row["group"]]

# Byte offsets of the half-precision scales in a block. iq1_m keeps its scale in the four top
# nibbles of its last eight bytes; mxfp4 and nvfp4 have 8-bit scales, any byte of which is finite.
HALF_SCALES = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208],
    "iq1_s": [0], "iq2_xxs": [0], "iq2_xs": [0], "iq2_s": [0], "iq3_xxs": [0], "iq3_s": [0],
    "iq4_nl": [0], "iq4_xs": [0], "tq1_0": [52], "tq2_0": [64],
}  # fmt: skip

# 0, -0, least and largest subnormal, least normal, largest, 1, and some of everyday size.
FINITE = [0x0000, 0x8000, 0x0001, 0x83FF, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00, 0x1234, 0xA5A5]
SPECIAL = [0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01]


def with_scales(name, blocks, halves):
    """Puts every pair of `halves` into the scale fields of successive blocks."""
    halves = np.array(halves, np.uint16)
    index = np.arange(len(blocks))
    for k, offset in enumerate(HALF_SCALES.get(name, [])):
        value = halves[index // len(halves) ** k % len(halves)]
        blocks[:, offset : offset + 2] = value.view(np.uint8).reshape(-1, 2)
    if name == "iq1_m":
        value = halves[index % len(halves)]
        for nibble in range(4):
            high = blocks[:, 49 + 2 * nibble]
            high[:] = (high & 0x0F) | ((value >> (4 * nibble)) & 0x0F).astype(np.uint8) << 4
    return blocks


def make_blocks(name, payload, halves):
    size = FORMATS[name]["bytes_per_block"]
    rng = np.random.default_rng(FORMATS[name]["gguf_id"])
    count = 4 * len(FINITE) ** 2
    if payload == "random":
        blocks = rng.integers(0, 256, (count, size), np.uint8)
    else:
        blocks = np.full((count, size), payload, np.uint8)
    return with_scales(name, blocks, halves)


def oracle(name, blocks):
    qtype = gguf.GGMLQuantizationType(FORMATS[name]["gguf_id"])
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks, qtype).reshape(-1)


def bits(values):
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def test_block_sizes_are_those_of_the_format():
    for name, row in FORMATS.items():
        qtype = gguf.GGMLQuantizationType(row["gguf_id"])
        assert qtype.name.lower() == name
        sizes = (row["values_per_block"], row["bytes_per_block"])
        assert gguf.GGML_QUANT_SIZES[qtype] == sizes


@pytest.mark.parametrize("payload", ["random", 0x00, 0xFF])
@pytest.mark.parametrize("name", PACKED)
def test_dequantize_is_bit_exact(name, payload):
    blocks = make_blocks(name, payload, FINITE)
    expected = oracle(name, blocks)
    assert not np.isnan(expected).any()
    actual = _core.dequantize(blocks, name)
    assert np.array_equal(bits(actual), bits(expected))


@pytest.mark.parametrize("name", [n for n in PACKED if n in HALF_SCALES or n == "iq1_m"])
def test_infinite_and_nan_scales(name):
    blocks = make_blocks(name, "random", SPECIAL + FINITE)
    expected = oracle(name, blocks)
    actual = _core.dequantize(blocks, name)
    nan = np.isnan(expected)
    assert nan.any() and not nan.all()
    assert np.array_equal(np.isnan(actual), nan)
    assert np.array_equal(bits(actual)[~nan], bits(expected)[~nan])


@pytest.mark.parametrize("name", PACKED)
def test_integer_view_gives_the_same_floats(name):
    group = FORMATS[name]["group"]
    blocks = make_blocks(name, "random", FINITE)
    u, scale, minimum, offset = _core.unpack_ints(blocks, name)
    assert u.size == group * scale.size
    with np.errstate(all="ignore"):
        value = np.repeat(scale, group) * (u.astype(np.float32) - np.float32(offset))
        if minimum is not None:
            value = value + np.repeat(minimum, group)
    assert value.dtype == np.float32
    assert np.array_equal(bits(value), bits(oracle(name, blocks)))


def test_plain_floats():
    every = np.arange(1 << 16, dtype=np.uint16)
    half = every.view(np.float16).astype(np.float32)
    nan = np.isnan(half)
    actual = _core.dequantize(every, "f16")
    assert np.array_equal(np.isnan(actual), nan)
    assert np.array_equal(bits(actual)[~nan], bits(half)[~nan])
    wide = every.astype(np.uint32) << 16
    assert np.array_equal(bits(_core.dequantize(every, "bf16")), wide)
    assert np.array_equal(bits(_core.dequantize(wide, "f32")), wide)


# Words of a block in the order in which products read them, where it is not the file's.
R16_ORDER = {
    "iq1_s": [w for h in range(4) for w in (8 + h, 2 * h, 2 * h + 1)],
    "iq1_m": [12, 13, *(w for h in range(4) for w in (8 + h, 2 * h, 2 * h + 1))],
    "iq2_xs": [16, 17, *range(16)],
    "iq2_s": [*range(16, 20), *(w for g in range(8) for w in (g, 8 + g))],
    "iq3_xxs": [w for g in range(8) for w in (16 + g, 2 * g, 2 * g + 1)],
    "iq3_s": [16, 17, 26, *(w for g in range(8) for w in (18 + g, 2 * g, 2 * g + 1))],
    "q2_k": [20, *range(20)],
    "q3_k": [24, 25, 26, *(w for j in range(8) for w in (j, 8 + j)), *range(16, 24)],
    "q5_k": [*range(4), *(w for j in range(8) for w in (4 + j, 12 + j)), *range(20, 44)],
    "q6_k": [
        *range(48, 52),
        *(w for h in (0, 16) for j in range(8) for w in (h + j, h + 8 + j, 32 + h // 2 + j)),
    ],
}


def r16_order(groups, blocks, panel):
    """(row group, block) of every record, as r16.h draws them."""
    return [
        (group, block)
        for band in range(0, groups, 8)
        for start in range(0, blocks, panel)
        for group in range(band, min(band + 8, groups))
        for block in range(start, min(start + panel, blocks))
    ]


@pytest.mark.parametrize(
    "rows, columns", [(1, 768), (16, 768), (21, 768), (150, 2304), (129, 1024)]
)
@pytest.mark.parametrize("name", FORMATS)
def test_r16_weaves_sixteen_rows(name, rows, columns):
    """The layout r16.h describes, rebuilt here with NumPy."""
    size, values = FORMATS[name]["bytes_per_block"], FORMATS[name]["values_per_block"]
    blocks, head = columns // values, size % 4
    data = np.random.default_rng(rows).integers(0, 256, (rows, blocks, size), np.uint8)
    packed = _core.r16_pack(data, name, rows)

    groups = -(-rows // 16)
    padded = np.zeros((groups * 16, blocks, size), np.uint8)
    padded[:rows] = data
    records = padded.reshape(groups, 16, blocks, size).transpose(0, 2, 1, 3)
    at_end = name in ("q3_k", "q6_k", "tq1_0", "tq2_0")
    heads = records[..., size - head :] if at_end else records[..., :head]
    words = records[..., : size - head] if at_end else records[..., head:]
    words = words.reshape(groups, blocks, 16, size // 4, 4).transpose(0, 1, 3, 2, 4)
    words = words[:, :, R16_ORDER.get(name, range(size // 4))]
    woven = np.concatenate(
        [heads.reshape(groups, blocks, -1), words.reshape(groups, blocks, -1)], axis=-1
    )
    expected = np.stack([woven[at] for at in r16_order(groups, blocks, 1024 // values)])
    assert np.array_equal(packed, expected.reshape(-1))
    assert np.array_equal(_core.r16_unpack(packed, name, rows), data.reshape(-1))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="19 bytes are no whole number of 20-byte blocks"):
        _core.dequantize(bytes(19), "q4_1")
    with pytest.raises(ValueError, match="no 3 rows"):
        _core.r16_pack(bytes(40), "q4_1", 3)
    with pytest.raises(NotImplementedError, match="q4_z"):
        _core.dequantize(bytes(20), "q4_z")


def test_refused_types_are_named():
    refused = _core.refused_formats()
    assert not refused.keys() & {row["gguf_id"] for row in FORMATS.values()}
    assert refused[139].startswith("iq4_k: only ik_llama.cpp writes this type")
    assert refused[202].startswith("q4_0_r8: ")
    # Every type of the gguf package is either read or refused by its name.
    for qtype in gguf.GGMLQuantizationType:
        if qtype.name.lower() not in FORMATS:
            assert refused[qtype.value].startswith(qtype.name.lower() + ": ")


@pytest.mark.parametrize("work", ["dequantize", "quantize"])
def test_other_threads_run_meanwhile(work):
    """No thread is switched to unless the lock is given up: the interval is ten minutes."""
    calls = {
        "dequantize": lambda: _core.dequantize(np.zeros((1 << 16, 144), np.uint8), "q4_k"),
        "quantize": lambda: _core.quantize(np.ones((512, 2048), np.float32), "q4_0"),
    }
    gate, seen = threading.Lock(), []
    gate.acquire()
    thread = threading.Thread(target=lambda: (gate.acquire(), seen.append("ran")))
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600)
    try:
        gate.release()
        assert not seen
        calls[work]()
        assert seen == ["ran"]
    finally:
        sys.setswitchinterval(interval)
        thread.join()
