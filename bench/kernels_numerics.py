"""What the products of every weight format lose: the arithmetic of prompts and of generated tokens.

Random blocks (any bytes with scales of ordinary size) times rows of activations with an outlier
channel, against the same in float64 on the dequantised weights. Errors are sizes relative to the
result's, so 1e-2 is one per cent.
"""

import numpy as np

from bench import report

FLOAT, EXACT, DIGIT = 0, 1, 2
ROWS, COLUMNS_OF_W, TOKENS = 64, 1024, 33
COLUMNS = ["format", "float", "halves", "digits"]


def measure(formats: list[str]) -> dict:
    """{isa, rows: [{format, float, halves, digits}]}; None where a format is always in float."""
    from ktransformers import _core

    facts = {row["name"]: row for row in _core.formats()}
    context = _core.Context(1)
    rng = np.random.default_rng(3)
    rows = []
    for name in formats or facts:
        per_row = COLUMNS_OF_W // facts[name]["values_per_block"] * facts[name]["bytes_per_block"]
        # With the top two bits of every byte clear, a half or a float is below 2 and no NaN.
        blocks = rng.integers(0, 64, (ROWS, per_row), np.uint8)
        w = _core.dequantize(blocks, name).reshape(ROWS, COLUMNS_OF_W).astype(np.float64)
        matrix = _core.Matrix(context, blocks, name, ROWS, COLUMNS_OF_W, "w")
        x = rng.standard_normal((TOKENS, COLUMNS_OF_W), np.float32)
        x[:, 100] *= 30
        expected = x @ w.T
        errors = []
        for mark in (FLOAT, EXACT, DIGIT):
            marks = np.full(TOKENS, mark, np.uint8)
            y = _core.Linear(matrix).forward(context, x, marks)
            errors.append(float(np.linalg.norm(y - expected) / np.linalg.norm(expected)))
        if not facts[name]["group"]:
            errors[1:] = None, None
        rows.append({"format": name, "float": errors[0], "halves": errors[1], "digits": errors[2]})
    return {"isa": context.isa, "rows": rows}


def show(found: dict) -> str:
    return report.table(COLUMNS, [[row[column] for column in COLUMNS] for row in found["rows"]])
