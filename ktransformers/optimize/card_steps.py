"""How many rows a step has on a card, and what it takes of RAM: what loading asks for, and planning
counts on. No torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from ktransformers import _core

# Of a step in which experts come to the card: each such step brings all of them once, so it has as
# many rows of a prompt as there is memory for. Attention and dense parts, and every other step,
# take SLICE rows at a time.
MOST_ROWS, SLICE, MOST_SEQUENCES = 8192, 512, 64
SMALL = 64 << 10  # of what a run exchanges besides: choices of experts, tokens, flags


def step_rows(all_on_cards: bool, cpu_rows: int, chunk_size: int | None = None) -> int:
    """Rows of a prompt's step. all_on_cards: layers on the CPU would keep that many rows in memory
    without being any faster than with cpu_rows. chunk_size: where somebody says so."""
    return min(chunk_size or (MOST_ROWS if all_on_cards else cpu_rows), MOST_ROWS)


def ram_bytes(
    hidden: int, layers: int, vocab: int, rows: int, positions: int, runs: int = 1
) -> int:
    """Of steps of `rows` rows in RAM, pinned but for the decoder's own: what every run of layers on
    a card exchanges with the host, and what the decoder keeps of a row (its values, and where each
    layer's pages are). vocab: 0 where no card has the head. positions: of the cache."""
    pages = -(-positions // _core.KV_PAGE)
    slices, slice_rows = -(-rows // SLICE), min(rows, SLICE)
    values = rows * hidden + 2 * slice_rows * hidden  # a step's rows; a job's, both ways
    tables = slices * (4 * slice_rows + MOST_SEQUENCES * (pages + 1))
    decoder = rows * (4 * hidden + 16 * layers)
    return runs * (4 * (values + tables) + SMALL) + 4 * _core.CARD_HEAD_ROWS * vocab + decoder


def planned_ram(
    config: Mapping[str, Any],
    placements: Iterable[Any],
    positions: int,
    cpu_rows: int,
    chunk_size: int | None = None,
) -> int:
    """The same of a plan: 0 without cards. placements: with module and device."""
    devices = {
        int(row.module.split(".")[2]): row.device
        for row in placements
        if row.module.endswith(".self_attn") and row.device.startswith("cuda")
    }
    if not devices:
        return 0
    layers = config["num_hidden_layers"]
    runs = sum(devices.get(i - 1) != device for i, device in devices.items())
    rows = max(SLICE, step_rows(len(devices) == layers, cpu_rows, chunk_size))
    rows = min(rows, -(-positions // _core.KV_PAGE) * _core.KV_PAGE)
    return ram_bytes(config["hidden_size"], layers, config["vocab_size"], rows, positions, runs)
