"""What plans say of int4 on a card, which must need no CUDA library, against what the library makes
(csrc/cuda/int4_gemm/placed.cpp): form, bytes and what is refused, for every GGUF type."""

from types import SimpleNamespace

import numpy as np
import pytest

from ktransformers.checkpoint.pieces import FACTS
from ktransformers.operators.card import Card, CardError
from ktransformers.operators.int4 import GROUPS, KEPT, form_of, trouble
from tests.support.blocks import ALL_TYPES, encode
from tests.support.card import emulated, needs_library

pytestmark = needs_library
# Whole strips of rows, less, and more; columns of one group, of none, and of several.
SHAPES = [(64, 64), (1, 128), (65, 192), (63, 256), (130, 512), (16, 32), (3, 96)]


@pytest.fixture(autouse=True)
def emulated_card(monkeypatch):
    yield from emulated(monkeypatch)


def test_no_type_is_left_out():
    assert {kind.name.lower() for kind in ALL_TYPES} == set(FACTS)


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda kind: kind.name)
def test_plans_and_the_library_say_the_same(kind):
    stored, card = kind.name.lower(), Card("cuda:0")
    rng = np.random.default_rng(3)
    made = 0
    for rows, cols in SHAPES:
        if cols % FACTS[stored]["values_per_block"]:
            continue  # no such matrix
        data = encode(rng.normal(0, 0.02, (rows, cols)).astype(np.float32), kind, rng)
        blocks = SimpleNamespace(data=data, format=stored, rows=rows, cols=cols)
        for quant, group in GROUPS.items():
            where = (quant, rows, cols)
            if trouble(quant, stored, cols):
                with pytest.raises(CardError, match="columns must be a multiple"):
                    card.int4(blocks, group, 2)
                continue
            before, form = card.bytes_taken, form_of(quant, stored)
            placed, squared, power = card.int4(blocks, group, 2)
            assert placed.gguf_id == -(form.group + form.has_offsets), where
            assert card.bytes_taken - before == form.nbytes(rows, cols), where
            assert power > 0 and (placed.rows, placed.cols) == (rows, cols), where
            if stored in KEPT and form.group == 32:
                assert squared <= 1e-6 * power, where
            made += 1
    assert made >= 3
