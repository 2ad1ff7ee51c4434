"""What cards have of a planned model, and what therefore stays in RAM. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktransformers.optimize.plan import Plan


@dataclass(frozen=True)
class OnCards:
    """weights: bytes of each card, in the form they have there. tensors: {GGUF name: the part of it
    that is on cards}. layers: {number: card} of layers whose attention, and with it whose cache, is
    on a card."""

    weights: Mapping[str, int] = field(default_factory=dict)
    tensors: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[int, str] = field(default_factory=dict)


def on_cards(made: Plan) -> OnCards:
    """Of a plan's rows that an operator of a card takes."""
    weights: dict[str, int] = {}
    tensors: dict[str, float] = {}
    layers: dict[int, str] = {}
    stays: set[str] = set()  # what a module on the CPU reads as well, as a tied head does
    for row in made.rows:
        if row.backend != "cuda":
            stays.update(row.tensors if row.kind != "embedding" else ())
            continue
        weights[row.device] = weights.get(row.device, 0) + row.nbytes
        whole = row.nbytes + row.smaller + row.on_cpu
        part = 1.0 - row.on_cpu / whole if whole else 1.0
        tensors.update(dict.fromkeys(row.tensors, part))
        if row.kind.startswith("attention."):
            layers[int(row.module.split(".")[2])] = row.device
    return OnCards(
        weights, {name: part for name, part in tensors.items() if name not in stays}, layers
    )
