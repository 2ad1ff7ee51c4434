"""The meter behind bench.kernels: what it times is what it says it times."""

import pytest

from bench import kernels_all, kernels_decode, kernels_numerics, kernels_prompt
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
        assert row["share"] > 0 and row["ratio"] is None
        assert str(row["format"]) in kernels_decode.show(found)


def test_shares_and_ratios_are_medians_of_neighbours(monkeypatch):
    class Meter:
        def run(self, *_):
            return {"bytes": 1e9, "product": [1.0, 2.0, 5.0], "read": [1.0, 1.0, 1.0]}

    class Context:
        threads = 2

    class Peer:
        speeds = [0.25, 0.1, 1.0]

        def ask(self, do, **_):
            return self.speeds.pop() if do == "run" else 0

    monkeypatch.setattr(kernels_decode, "PAUSE", 0.0)
    row = kernels_decode.row_of(Meter(), Context(), "q4_k", 12, 1, Peer())
    assert row["share"] == pytest.approx(0.5) and row["gbps"] == pytest.approx(0.5)
    assert row["peer"] == pytest.approx(0.25) and row["ratio"] == pytest.approx(2.0)


def test_prompt_shares_are_of_the_peak_measured_beside_them():
    found = kernels_prompt.measure(["q4_k", "q2_k"], [1], [16], gib=0.02)
    assert [row["format"] for row in found["rows"]] == ["q4_k", "q2_k"]
    for row in found["rows"]:
        assert row["must"] is None  # only 128 tokens have one
        assert row["gops"] == pytest.approx(2 * 2048 * 7168 * 16 / row["seconds"] * 1e-9)
        assert row["share"] is None or row["share"] == pytest.approx(row["gops"] / row["peak_gops"])
        assert row["format"] in kernels_prompt.show(found)


def test_errors_are_those_of_the_rounding():
    rows = {
        row["format"]: row for row in kernels_numerics.measure(["q4_k", "iq2_s", "f16"])["rows"]
    }
    for name in ("q4_k", "iq2_s"):
        assert (
            rows[name]["float"] < 1e-6 < rows[name]["halves"] < 1e-3 < rows[name]["digits"] < 0.03
        )
    assert rows["f16"]["halves"] is None


def test_all_sets_stand_side_by_side_and_a_failed_part_is_named(monkeypatch, capsys):
    def row(share, threads=1):
        made = {"format": "q4_k", "threads": threads, "share": share}
        return made | {"read_gbps": 25.0, "ratio": 4.0}

    errors = {"rows": [{"format": "q4_k", "float": 0.0, "halves": 3e-5, "digits": 5e-3}]}
    found = {
        "timed": ["b", "a"],
        "twins": ["c"],
        "decode": {isa: {"rows": [row(0.9), row(0.8, 2)]} for isa in "ba"},
        "prompt": {isa: {"rows": [row(0.7)]} for isa in "ba"},
        "numerics": {isa: errors for isa in "bac"},
    }
    text = kernels_all.show(found)
    for words in (
        "decode, 1 thread:",
        "decode, 2 threads:",
        "4.0 x",
        "70%",
        "c halves",
        "5.00e-03",
    ):
        assert words in text, words
    made = {
        "machine": {"cpu": "a cpu", "cores": 2},
        "commit": "abc",
        "date": "2026-01-02T03:04:05Z",
    }
    page = kernels_all.page_part(found | made, None)
    assert "| q4_k | 90% | 90% | 25 | 4.0 x |" in page and "abc, 2026-01-02" in page
    monkeypatch.setattr(kernels_all, "sets", lambda: (["no_such_set"], []))
    assert kernels_all.run(["q4_k"], 0.02, False) == 1
    assert "no_such_set" in capsys.readouterr().err
