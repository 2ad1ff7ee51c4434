"""From layers whose operators are on a card to a node of the program.

A layer is the card's where its attention is. Then its norms are too, and its feed-forward part is
either all there (router and shared expert, with experts on the card, on the CPU or on both), or
all the CPU's. Layers that follow one another on a card are one model there and one node.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from ktransformers import _core
from ktransformers.checkpoint.pieces import FACTS
from ktransformers.errors import UserError
from ktransformers.operators.attention import MlaAttention
from ktransformers.operators.card import CardError, CardModel, Placed
from ktransformers.operators.on_card import CardBlock, CardExperts, CardLinear, CardRouter, OnCard
from ktransformers.operators.rope import Rope
from ktransformers.optimize.card_steps import MOST_SEQUENCES, SLICE
from ktransformers.optimize.report import size_text

WHOLE = -1
STREAM_SLOTS = 16  # experts that a long prompt has on the card while as many follow
STREAM_FROM = 0  # rows of a prompt from which experts come to the card; 0: learned
# Where another value than the CUDA module's own is better on a card (csrc/cuda/model/dense.h):
# {"dense_rows": rows from which products dequantise, "dense_bytes": of weights at a time}.
DENSE: dict[str, int] = {}


def device_of(layer) -> str | None:
    """The card that has a layer, None for the CPU. Raises: UserError for one that is cut up."""
    attention = layer.self_attn
    parts = [part for part in layer.modules() if isinstance(part, OnCard)]
    if not parts:
        return None
    if not isinstance(attention, OnCard):
        owner = getattr(attention, "name", "its attention")
        raise UserError(
            f"{parts[0].name} is on {parts[0].placed_on}, but {owner} is not: a card computes "
            "layers from their attention on; put both on the same device"
        )
    for part in parts:
        if part.placed_on != attention.placed_on:
            raise UserError(
                f"{part.name} is on {part.placed_on} and {attention.name} on "
                f"{attention.placed_on}: a layer is on one card"
            )
    return attention.placed_on


@dataclass
class CardLayers:
    """A run of layers on one card while it is put together."""

    model: object  # the PreTrainedModel
    engine: object
    device: str
    first: int  # number of the first layer
    layers: list = field(default_factory=list)
    step_rows: int = 0  # of a prompt, that a step will have at most
    rows: int = 0  # of a step, once it is made

    @property
    def defers(self) -> bool:
        """Whether a layer can leave experts to the next one: both wait for the CPU's."""
        if not self.engine.defer_experts:
            return False
        waits = [
            isinstance(layer.mlp, CardBlock) and layer.mlp.experts.core is not None
            for layer in self.layers
        ]
        return any(a and b for a, b in pairwise(waits))

    @property
    def name(self) -> str:
        return f"model.layers.{self.first}-{self.first + len(self.layers) - 1}"

    def build(self, with_head: bool) -> None:
        """Tells the card of the run, which takes what no step can do without. All runs of a card
        come before the first node(). Raises: UserError naming what the card cannot have."""
        card = self.engine.card(self.device)
        made = CardModel(card, len(self.layers))
        self.card, self.made, self.jobs, self.routing = card, made, [], None
        with self.named_errors():
            for index, layer in enumerate(self.layers):
                self.add_attention(index, layer)
                self.add_feed_forward(index, layer)
            self.common = self.numbers(with_head)
            for key, value in self.common.items():
                made.number(WHOLE, key, value)
            if with_head:
                base = self.model.model
                made.matrix(WHOLE, "head", self.matrix_of(self.model.lm_head))
                made.memory(WHOLE, "final_norm", card.floats(self.norm_of(base.norm)))
            made.build()

    def node(self):
        """The core's node, which shares the card's room. Raises: UserError as build() does."""
        with self.named_errors():
            self.rows = self.made.take_room(self.engine.pin_left)
        if self.engine.pin_left is not None:
            self.engine.pin_left -= self.made.pinned().pinned
        options = {
            "device": self.device, "rows": self.rows, "sequences": self.common["sequences"],
            "vocab": self.common["vocab"], "experts_per_token": int(self.common.get("top_k", 0)),
        }  # fmt: skip
        return _core.card_node(
            self.name, self.made.for_core(), options, self.jobs, self.model.config.hidden_size
        )

    def pinned_line(self) -> str:
        """What of its experts the card reads by itself in prompts; empty where none come to it."""
        found = self.made.pinned()
        if not found.asked:
            return ""
        of = f"{size_text(found.pinned)} of {size_text(found.asked)} of experts pinned"
        took = f" in {found.seconds:.1f} s" if found.pinned else ""
        reason = found.why and (self.engine.unpinned_because or found.why)
        why = f" ({reason}; prompts copy the others twice)" if reason else ""
        return f"{self.device}: {of}{took}{why}"

    @contextmanager
    def named_errors(self):
        try:
            yield
        except CardError as error:
            raise UserError(f"{self.name}: {error}") from error

    def numbers(self, with_head: bool) -> dict[str, float]:
        """What the whole run has in common."""
        config, attention = self.model.config, self.layers[0].self_attn
        pages = self.engine.kv.page_limit
        rows = min(max(SLICE, self.step_rows), pages * _core.KV_PAGE)
        rope = self.rope_of(self.model.model.rotary_emb)
        self.made.memory(WHOLE, "inv_freq", self.card.floats(rope.inv_freq.float().numpy()))
        numbers = {
            "rows": rows, "slice": min(rows, SLICE), "hidden": config.hidden_size,
            "sequences": min(rows, SLICE, MOST_SEQUENCES),
            "heads": config.num_attention_heads, "pages": pages, "max_pages": pages,
            "eps": self.layers[0].input_layernorm.variance_epsilon, "scale": attention.scaling,
            "rope": 2 * len(rope.inv_freq), "rope_scaling": rope.rotary.attention_scaling,
            "rope_interleaved": rope.is_interleaved, "fp8_cache": self.engine.fp8_cache,
            "vocab": self.model.lm_head.out_features if with_head else 0,
            "stream_slots": STREAM_SLOTS, "stream_from": STREAM_FROM, **DENSE,
            "defer_experts": self.engine.defer_experts if self.defers else 0,
        }  # fmt: skip
        if isinstance(attention, MlaAttention):
            numbers |= {
                "q_lora": config.q_lora_rank or 0, "kv_lora": config.kv_lora_rank,
                "nope": config.qk_nope_head_dim, "v": config.v_head_dim,
                "inner_eps": attention.kv_a_layernorm.variance_epsilon,
            }  # fmt: skip
        else:
            head_dim = getattr(config, "head_dim", None)
            numbers |= {
                "kv_heads": config.num_key_value_heads,
                "head_dim": head_dim or config.hidden_size // config.num_attention_heads,
            }
        return numbers | (self.routing or {})

    def add_attention(self, index: int, layer) -> None:
        attention, made = layer.self_attn, self.made
        for name, norm in (("attention_norm", layer.input_layernorm),
                           ("ffn_norm", layer.post_attention_layernorm)):  # fmt: skip
            made.memory(index, name, self.card.floats(self.norm_of(norm)))
        if isinstance(attention, MlaAttention):
            names = {"kv_a": "kv_a_proj_with_mqa", "o": "o_proj"}
            norms = {"kv_norm": "kv_a_layernorm"}
            if attention.q_lora_rank is None:
                names["q"] = "q_proj"
            else:
                names |= {"q_a": "q_a_proj", "q_b": "q_b_proj"}
                norms["q_norm"] = "q_a_layernorm"
            made.memory(index, "k_b", attention.k_b)
            made.memory(index, "v_b", attention.v_b)
        else:
            names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
            norms = {
                short: name
                for short, name in (("q_norm", "q_norm"), ("kv_norm", "k_norm"))
                if hasattr(attention, name)
            }
        for short, name in names.items():
            linear = getattr(attention, name)
            made.matrix(index, short, self.matrix_of(linear))
            if linear.bias is None:
                continue
            if short not in ("q", "k", "v") or isinstance(attention, MlaAttention):
                raise UserError(f"{linear.name} has a bias, which {self.device} cannot add here")
            made.memory(index, f"{short}_bias", self.card.floats(linear.bias))
        for short, name in norms.items():
            made.memory(index, short, self.card.floats(self.norm_of(getattr(attention, name))))

    def add_feed_forward(self, index: int, layer) -> None:
        mlp = layer.mlp
        if getattr(mlp, "core", None) is not None:  # all of it is the CPU's
            self.made.number(index, "cpu_ffn", 1)
            self.jobs.append(mlp.core)
        elif isinstance(mlp, CardBlock):
            self.add_routed(index, mlp)
        elif hasattr(mlp, "gate_proj"):
            self.add_mlp(index, mlp)
        else:
            why = getattr(mlp, "reason", None) or f"it is a torch {type(mlp).__name__}"
            raise UserError(f"model.layers.{self.first + index}.mlp has no way to run: {why}")

    def add_mlp(self, index: int, mlp) -> None:
        for short, name in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            linear = getattr(mlp, name)
            self.made.matrix(index, short, self.matrix_of(linear))
            if linear.bias is not None:
                raise UserError(f"{linear.name} has a bias, which {self.device} cannot add here")

    def add_routed(self, index: int, block) -> None:
        router, experts, made = block.gate, block.experts, self.made
        if not isinstance(router, CardRouter):
            raise UserError(f"{router.name} is not on {self.device}, but {block.name} is")
        made.memory(index, "router", router.weight)
        options = dict(router.options_of_routing)
        bias = options.pop("bias", None)
        if bias is not None:
            made.memory(index, "router_bias", self.card.floats(bias))
        self.routing = options | {
            "top_k": router.top_k, "experts": router.num_experts,
            "expert_inner": experts.intermediate_dim,
        }  # fmt: skip
        made.number(WHOLE, "experts", router.num_experts)  # sources are checked against it
        slots = experts.slots if isinstance(experts, CardExperts) else {}
        for expert, parts in slots.items():
            made.expert(index, expert, *parts)
        self.add_experts(index, experts, slots)
        if experts.core is not None:
            made.number(index, "cpu_experts", 1)
            self.jobs.append(experts.core)
        shared = next((n for n in ("shared_experts", "shared_expert") if hasattr(block, n)), None)
        if shared:
            self.add_mlp(index, getattr(block, shared))
        if hasattr(block, "shared_expert_gate"):
            gate = block.shared_expert_gate.weight.numpy()
            made.memory(index, "shared_gate", self.card.floats(gate.reshape(-1)))

    def add_experts(self, index: int, experts, slots: dict) -> None:
        """What a layer's experts are alike in, and where those without a slot are in RAM."""
        parts = ("gate", "up", "down")
        if slots:
            for name, placed in zip(parts, next(iter(slots.values())), strict=True):
                self.made.matrix(index, f"slot_{name}", placed)
        if experts.core is None:
            return
        first = next(e for e in range(experts.num_experts) if e not in slots)
        try:
            for name, table in zip(parts, experts.matrices, strict=True):
                m = table[first]
                placed = Placed(None, m.rows, m.cols, FACTS[m.format]["gguf_id"])
                self.made.matrix(index, f"source_{name}", placed)
        except CardError:
            return  # the CPU's in prompts too: cards have no kernel for their type
        for part, table in enumerate(experts.matrices):
            for expert, matrix in enumerate(table):
                if expert not in slots:
                    self.made.source(index, expert, part, matrix)

    def matrix_of(self, linear):
        if not isinstance(linear, CardLinear):
            name = getattr(linear, "name", type(linear).__name__)
            raise UserError(
                f"{name} is not on {self.device}, but what it belongs to is; put both there"
            )
        return linear.matrix

    def norm_of(self, norm):
        values = getattr(norm, "values", None)
        if values is None:
            raise UserError(
                f"a {type(norm).__name__} in torch stands between products on {self.device}; give "
                "norms operator norm.rms"
            )
        return values

    def rope_of(self, rope) -> Rope:
        if not isinstance(rope, Rope):
            raise UserError(
                f"layers on {self.device} need the operator rope, the rotary embedding is a torch "
                f"{type(rope).__name__}"
            )
        return rope
