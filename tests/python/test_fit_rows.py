"""The planner's constants and predictions against what was measured (bench/fit_rows.json)."""

import pytest

from bench import fit_check
from ktransformers import _core
from ktransformers.optimize import estimate


def test_the_constants_are_those_of_the_rows_they_were_fitted_on():
    made = fit_check.constants(fit_check.load_rows("fit"))
    for found, used in ((made["decode"], estimate.DECODE), (made["prompt"], estimate.PROMPT)):
        assert found.keys() == used.keys()
        for name, value in found.items():
            assert used[name] == pytest.approx(value, rel=0.02, abs=1e-7), name
    fitted = {row["model"] for row in fit_check.load_rows("fit")}
    tested = {row["model"] for row in fit_check.load_rows("test")}
    assert len(fitted) >= 3 and len(tested) >= 4 and not fitted & tested


def test_prompts_are_long_to_the_planner_where_they_are_to_the_core():
    assert estimate.LONG_PROMPT == _core.LONG_PROMPT


def test_predictions_hold_where_they_were_not_fitted():
    """Four models, two numbers of threads, two contexts, as they were measured."""
    rows = fit_check.load_rows("test")
    assert {row["threads"] for row in rows} == {1, 2} and len(rows) == 8
    contexts = {row["threads"]: sorted(row["decode"]) for row in rows}
    assert all(len(found) == 2 for found in contexts.values())
    for row in rows:
        for kind, context, guess, measured in fit_check.predicted(row):
            bound = {"decode": 0.15, "prompt": 0.2}[kind]
            assert guess == pytest.approx(measured, rel=bound), (row["model"], kind, context)
        assert fit_check.promised_memory(row) == pytest.approx(row["memory_after"], rel=0.15)
