"""From a tree of operators to the core's decoder program.

A layer whose four parts (two norms, attention, feed-forward) have core handles becomes two nodes. A
layer with a part that has none becomes one node that calls its transformers forward, and the reason
is given once, by name. Without handles for embedding, final norm and head nothing is lowered.
"""

from dataclasses import dataclass, field

from ktransformers import _core
from ktransformers.errors import UserError
from ktransformers.operators.on_card import OnCard
from ktransformers.optimize.card_steps import step_rows
from ktransformers.runtime.card_layers import CardLayers, device_of
from ktransformers.runtime.torch_layers import TorchLayers

SHOWN = 3  # layers whose reason is told


@dataclass
class Lowered:
    """decoder: None where the model runs module by module. notes: why what was not lowered.
    defers: some layer on a card leaves experts to the next one. prompt_rows: of a step, that cards
    make good use of; 0: no more than the CPU does. pinned: of the experts that come to cards, a
    line for each run of layers."""

    decoder: _core.Decoder | None
    notes: list[str] = field(default_factory=list)
    defers: bool = False
    prompt_rows: int = 0
    pinned: list[str] = field(default_factory=list)


def cache_widths(model) -> list[tuple[int, int, int]]:
    """Values each layer keeps per position and the key heads they are of: (keys, values, heads)."""
    config, widths = model.config, []
    for layer in model.model.layers:
        core = getattr(layer.self_attn, "core", None)
        if isinstance(layer.self_attn, OnCard):
            widths.append((0, 0, 1))  # the card keeps its own
        elif core is not None:
            widths.append(tuple(core.kv_widths))
        elif hasattr(config, "kv_lora_rank"):
            widths.append((config.kv_lora_rank + config.qk_rope_head_dim, 0, 1))
        else:
            head_dim = getattr(config, "head_dim", None) or (
                config.hidden_size // config.num_attention_heads
            )
            heads = config.num_key_value_heads
            widths.append((heads * head_dim, heads * head_dim, heads))
    return widths


def lower(model, engine, cpu_rows: int, chunk_size: int | None = None) -> Lowered:
    """The decoder program of a model whose operators are loaded and whose cache exists.

    cpu_rows: of a prompt's step that the CPU's layers make good use of. chunk_size: of every step,
    where somebody says so.
    """
    base = model.model
    runs = card_runs(model, engine)
    all_on_cards = sum(len(run.layers) for run in runs) == len(base.layers)
    outer = {"model.embed_tokens": base.embed_tokens, "model.norm": base.norm,
             "lm_head": model.lm_head}  # fmt: skip
    head_on = head_device(model, runs)
    if head_on:
        del outer["lm_head"]
    missing = [name for name, module in outer.items() if getattr(module, "core", None) is None]
    if missing:
        reasons = [_why(name, outer[name]) for name in missing]
        if runs:
            raise UserError(f"layers on {runs[0].device} need a lowered program: {reasons[0]}")
        return Lowered(None, [f"not lowered: {reason}" for reason in reasons])
    nodes: list = []
    outside: list[str] = []  # why layers are not lowered
    in_torch = TorchLayers(model, engine)
    on_card = {run.first + i: run for run in runs for i in range(len(run.layers))}
    for run in runs:  # every cache on a card before anything that only makes steps faster
        run.step_rows = step_rows(all_on_cards, cpu_rows, chunk_size)
        run.build(with_head=bool(head_on) and run is runs[-1])
    for index, layer in enumerate(base.layers):
        if run := on_card.get(index):
            if run.first == index:
                nodes.append(run.node())
            continue
        name = f"model.layers.{index}"
        parts = {n: getattr(layer, n) for n in
                 ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")}  # fmt: skip
        without = [n for n, part in parts.items() if getattr(part, "core", None) is None]
        if without:
            reasons = dict.fromkeys(_why(f"{name}.{n}", parts[n]) for n in without)
            outside.append(f"{name} runs in torch: {'; '.join(reasons)}")
            nodes.append(
                _core.callback_node(name, in_torch.callback(index), model.config.hidden_size)
            )
            continue
        cores = [part.core for part in parts.values()]
        nodes.append(_core.attention_node(f"{name}.self_attn", cores[0], cores[1], index))
        nodes.append(_core.feed_forward_node(f"{name}.mlp", cores[2], cores[3]))
    decoder = _core.Decoder(
        engine.context, base.embed_tokens.core, nodes, base.norm.core, model.lm_head.core,
        engine.kv, engine.arithmetic,
    )  # fmt: skip
    notes = outside[:SHOWN]
    if len(outside) > SHOWN:
        notes.append(f"{len(outside) - SHOWN} more layers run in torch too")
    rows = max(run.rows for run in runs) if all_on_cards else 0
    pinned = [line for run in runs if (line := run.pinned_line())]
    return Lowered(decoder, notes, any(run.defers for run in runs), rows, pinned)


def card_runs(model, engine) -> list[CardLayers]:
    """Runs of layers on one card, in order. Raises: UserError."""
    runs: list[CardLayers] = []
    for index, layer in enumerate(model.model.layers):
        device = device_of(layer)
        if device is None:
            continue
        last = runs[-1] if runs else None
        if not last or last.device != device or last.first + len(last.layers) != index:
            last = CardLayers(model, engine, device, index)
            runs.append(last)
        last.layers.append(layer)
    return runs


def head_device(model, runs: list[CardLayers]) -> str | None:
    """The card that has lm_head, None for the CPU. Raises: UserError where the last layer is not
    there."""
    head = model.lm_head
    if not isinstance(head, OnCard):
        return None
    count = len(model.model.layers)
    if (
        not runs
        or runs[-1].first + len(runs[-1].layers) != count
        or (runs[-1].device != head.placed_on)
    ):
        raise UserError(
            f"lm_head is on {head.placed_on}, the last layer is not: put both on the same device"
        )
    return head.placed_on


def _why(name: str, module) -> str:
    return getattr(module, "reason", None) or f"{name} is a torch {type(module).__name__}"
