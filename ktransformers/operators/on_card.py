"""Operators on a card: they put their weights there; lowering makes a program of them.

Nothing of them runs by itself: a card computes whole layers (runtime/card_layers.py), and what is
called module by module is the CPU's.
"""

import json

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint.weights import Blocks
from ktransformers.errors import UserError
from ktransformers.operators.attention import GqaAttention, MlaAttention
from ktransformers.operators.int4 import GROUPS, form_of
from ktransformers.operators.linear import Linear
from ktransformers.operators.mlp import SwigluMlp
from ktransformers.operators.moe import Block, Experts, Router


class OnCard:
    """What they share. placed_on: "cuda:0", set before load()."""

    placed_on = ""

    @property
    def card(self):
        return self.engine.card(self.placed_on)

    def load(self, weights) -> None:
        self.reason = f"{self.name} is on {self.placed_on}"

    def forward(self, *args, **kwargs):
        raise UserError(f"{self.name} is on {self.placed_on}: call the model, not the module")

    def place(self, blocks):
        """A matrix, on the card: in int4 where option `quant` says so. Rounding it is counted for
        the line about all of them."""
        quant = getattr(self.options, "quant", None)
        if quant not in GROUPS:
            return self.card.matrix(blocks)
        form = form_of(quant, blocks.format)
        threads = self.engine.context.threads
        matrix, error, power = self.card.int4(blocks, form.group, threads)
        values = blocks.rows * blocks.cols
        self.engine.int4.add(form.nbytes(blocks.rows, blocks.cols), values, error, power)
        return matrix


class CardLinear(OnCard, Linear):
    """matrix: on the card; bias: float32 or None. kv_b has neither: attention takes it apart."""

    def load(self, weights) -> None:
        super().load(weights)
        self._weights = weights
        self.matrix = self.bias = None
        if self.name.endswith(".kv_b_proj"):
            return
        blocks = weights.matrix(f"{self.name}.weight", self.out_features, self.in_features)
        self.matrix = self.place(blocks)
        if self.has_bias:
            self.bias = weights.floats(f"{self.name}.bias")


class CardGqaAttention(OnCard, GqaAttention):
    """Its products are its children; nothing is its own."""


class CardMlaAttention(OnCard, MlaAttention):
    """k_b, v_b: addresses of kv_b's halves as the absorbed form reads them, in f16."""

    def load(self, weights) -> None:
        super().load(weights)
        config = self.config
        heads, latent = config.num_attention_heads, config.kv_lora_rank
        nope, value = config.qk_nope_head_dim, config.v_head_dim
        rows = weights.floats(f"{self.name}.kv_b_proj.weight", (heads * (nope + value), latent))
        rows = rows.reshape(heads, nope + value, latent)
        self.k_b = self.card.halves(rows[:, :nope].transpose(0, 2, 1))
        self.v_b = self.card.halves(rows[:, nope:])


class CardMlp(OnCard, SwigluMlp):
    """Its products are its children."""


class CardBlock(OnCard, Block):
    """Router, shared expert and experts are its children."""


class CardRouter(OnCard, Router):
    """weight: address of [experts, hidden] floats; options: the core's router options."""

    def load(self, weights) -> None:
        super().load(weights)
        shape = (self.num_experts, self.hidden_dim)
        self.weight = self.card.floats(weights.floats(f"{self.name}.weight", shape))
        self.options_of_routing = self.routing(weights)


class CardExperts(OnCard, Experts):
    """slots: {expert: (gate, up, down) on the card}; core: the CPU's experts, None where all have a
    slot. Option `experts` says how many have one: the hottest of its profile, else the first. Those
    in slots are in int4 where option `quant` says so, the others in the type they are stored in."""

    def load(self, weights) -> None:
        super().load(weights)
        shape = (self.intermediate_dim, self.hidden_dim)
        gate, up = weights.experts(f"{self.name}.gate_up_proj", self.num_experts, *shape)
        (down,) = weights.experts(f"{self.name}.down_proj", self.num_experts, *shape[::-1])
        parts = [self.by_expert(part) for part in (gate, up, down)]
        chosen = self.chosen()
        self.slots = {
            expert: tuple(self.place(part[expert]) for part in parts) for expert in chosen
        }
        others = [expert for expert in range(self.num_experts) if expert not in self.slots]
        if not others:
            return
        # Every expert needs an entry; those on the card borrow one, which is never asked for.
        tables = []
        for part in parts:
            made = {expert: self.make_matrix(part[expert]) for expert in others}
            tables.append([made.get(e, made[others[0]]) for e in range(self.num_experts)])
        self.matrices = tables
        self.core = _core.Experts(*tables)

    def by_expert(self, part) -> list[Blocks]:
        """A Stack or a list, as one matrix per expert."""
        if isinstance(part, list):
            return part
        rows = np.asarray(part.data).reshape(self.num_experts, -1)
        return [
            Blocks(rows[e], part.format, part.rows, part.cols, f"{part.name}[{e}]")
            for e in range(self.num_experts)
        ]

    def chosen(self) -> list[int]:
        """The experts that get a slot. Raises: UserError for a profile that has no such layer."""
        count = getattr(self.options, "experts", None)
        if count is None:
            return list(range(self.num_experts))
        profile = getattr(self.options, "profile", None)
        if not profile:
            return list(range(count))
        layer = self.name.split(".")[2]
        try:
            with open(profile, encoding="utf-8") as file:
                counts = json.load(file)["layers"][layer]["counts"]
            order = sorted(range(self.num_experts), key=lambda expert: -counts[expert])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{profile}: no counts of layer {layer}'s experts ({error})") from error
        return sorted(order[:count])
