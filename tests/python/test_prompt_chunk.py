"""Rows of a prompt evaluated at a time: what the chunk is chosen by."""

import pytest

from ktransformers.errors import UserError
from ktransformers.optimize.prompt_chunk import MOST, prompt_chunk
from ktransformers.runtime.loading import load_model

QWEN3 = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
V3 = {"n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048}
MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336}


@pytest.mark.parametrize(
    ("config", "rows"),
    [({"hidden_size": 576}, 512), (QWEN3, 1024), (V3, 1024), (MIXTRAL, 512)],
    ids=["dense", "qwen3", "v3", "mixtral"],
)
def test_known_models(config, rows):
    assert prompt_chunk(config) == rows


def test_more_experts_never_ask_for_fewer_rows_up_to_a_bound():
    rows = [prompt_chunk(QWEN3 | {"num_experts": 2**n}) for n in range(3, 14)]
    assert rows == sorted(rows) and rows[0] == 512 and rows[-1] == MOST


def test_wide_experts_are_bounded_by_scratch_memory():
    wide = QWEN3 | {"num_experts": 4096, "moe_intermediate_size": 4096}
    assert prompt_chunk(wide) * 8 * 4096 * 8 <= 128 << 20


@pytest.mark.parametrize("chunk_size", [0, -1, "512", 2.0, True, 1 << 40])
def test_a_chunk_that_is_no_number_of_tokens_is_one_line(chunk_size):
    """Before the model is looked for."""
    with pytest.raises(UserError, match="chunk_size=.*at least 1") as error:
        load_model("no such model", chunk_size=chunk_size)
    assert "\n" not in str(error.value)
