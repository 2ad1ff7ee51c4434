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
STAGING = 16 << 20  # of a card, for copies from what is not pinned (csrc/cuda/model/staging.h)


def step_rows(all_on_cards: bool, cpu_rows: int, chunk_size: int | None = None) -> int:
    """Rows of a prompt's step. all_on_cards: layers on the CPU would keep that many rows in memory
    without being any faster than with cpu_rows. chunk_size: where somebody says so."""
    return min(chunk_size or (MOST_ROWS if all_on_cards else cpu_rows), MOST_ROWS)


def ram_bytes(
    hidden: int,
    layers: int,
    vocab: int,
    rows: int,
    positions: int,
    runs: int = 1,
    decoder_rows: int = 0,
    defers: bool = False,
    staged: int = 0,
) -> int:
    """Of steps of `rows` rows in RAM, pinned but for the decoder's own: what every run of layers on
    a card exchanges with the host, and what the decoder keeps of a row (its values, and where each
    layer's pages are). vocab: 0 where no card has the head. positions: of the cache. decoder_rows:
    where its steps have more than cards take at a time. defers: experts' sums are kept for the next
    layer. staged: cards that experts come to from memory that is not pinned."""
    pages = -(-positions // _core.KV_PAGE)
    slices, slice_rows = -(-rows // SLICE), min(rows, SLICE)
    # A step's rows; a job's, both ways, and once more what it leaves for later.
    values = rows * hidden + (3 if defers else 2) * slice_rows * hidden
    tables = slices * (4 * slice_rows + MOST_SEQUENCES * (pages + 1))
    decoder = max(rows, decoder_rows) * (4 * hidden + 16 * layers)
    exchanged = runs * (4 * (values + tables) + SMALL) + staged * STAGING
    return exchanged + 4 * _core.CARD_HEAD_ROWS * vocab + decoder


def planned_ram(
    config: Mapping[str, Any],
    placements: Iterable[Any],
    positions: int,
    cpu_rows: int,
    chunk_size: int | None = None,
    defers: bool = False,
    pins_all: bool = True,
) -> int:
    """The same of a plan: 0 without cards. placements: with module and device. pins_all: as far as
    is known, all experts that come to cards can be pinned."""
    placements = list(placements)
    devices = {
        int(row.module.split(".")[2]): row.device
        for row in placements
        if row.module.endswith(".self_attn") and row.device.startswith("cuda")
    }
    if not devices:
        return 0
    streams = any(row.module.endswith(".mlp.experts") for row in placements)
    staged = len(set(devices.values())) if streams and not pins_all else 0
    layers = config["num_hidden_layers"]
    runs = sum(devices.get(i - 1) != device for i, device in devices.items())
    cached = -(-positions // _core.KV_PAGE) * _core.KV_PAGE
    rows = min(max(SLICE, step_rows(len(devices) == layers, cpu_rows, chunk_size)), cached)
    return ram_bytes(
        config["hidden_size"], layers, config["vocab_size"], rows, positions, runs,
        min(chunk_size or rows, cached), defers, staged,
    )  # fmt: skip
