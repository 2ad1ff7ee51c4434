"""The meter behind bench.kernels: what it times is what it says it times."""

import pytest

from bench import kernels_decode
from ktransformers import _core

EXACT = 1


@pytest.fixture(scope="module")
def meter():
    context = _core.Context(2)
    return context, _core.KernelMeter(context, 16 << 20)


@pytest.mark.parametrize("name", [row["name"] for row in _core.formats()])
def test_a_window_is_one_matrix(meter, name):
    facts = next(row for row in _core.formats() if row["name"] == name)
    times = meter[1].run(meter[0], name, 40, 512, 2, EXACT, 3)
    # Row groups are whole: 40 rows are stored as 48.
    assert times["bytes"] == 48 * 512 // facts["values_per_block"] * facts["bytes_per_block"]
    assert len(times["product"]) == len(times["read"]) == 3
    assert all(seconds > 0 for seconds in times["product"] + times["read"])


def test_shapes_that_do_not_fit_are_refused(meter):
    with pytest.raises(ValueError, match="300 columns are no multiple of q4_k"):
        meter[1].run(meter[0], "q4_k", 16, 300, 1, EXACT, 1)
    with pytest.raises(ValueError, match="does not fit"):
        meter[1].run(meter[0], "f32", 1 << 20, 512, 1, EXACT, 1)
    with pytest.raises(ValueError, match="must be positive"):
        meter[1].run(meter[0], "q4_k", 0, 512, 1, EXACT, 1)
    with pytest.raises(ValueError, match="less than a huge page"):
        _core.KernelMeter(meter[0], 1 << 20)


def test_the_table_has_a_row_per_format_and_count():
    found = kernels_decode.measure(["q4_k", "q8_0"], [1], [1, 2], gib=0.02, with_peer=False)
    assert [(row["format"], row["tokens"]) for row in found["rows"]] == [
        ("q4_k", 1), ("q8_0", 1), ("q4_k", 2), ("q8_0", 2),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["share"] == pytest.approx(row["gbps"] / row["read_gbps"])
        assert str(row["format"]) in kernels_decode.show(found)
