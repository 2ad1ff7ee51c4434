"""From a tree of operators to the core's decoder program.

A layer whose four parts (two norms, attention, feed-forward) have core handles becomes two nodes. A
layer with a part that has none becomes one node that calls its transformers forward, and the reason
is given once, by name. Without handles for embedding, final norm and head nothing is lowered.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ktransformers import _core
from ktransformers.runtime.cache import PagedCache


@dataclass
class Lowered:
    """decoder: None where the model runs module by module. notes: why what was not lowered."""

    decoder: _core.Decoder | None
    notes: list[str] = field(default_factory=list)


def cache_widths(model) -> list[tuple[int, int]]:
    """Values each layer keeps per position, (keys, values)."""
    config, widths = model.config, []
    for layer in model.model.layers:
        core = getattr(layer.self_attn, "core", None)
        if core is not None:
            widths.append(tuple(core.kv_widths))
        elif hasattr(config, "kv_lora_rank"):
            widths.append((config.kv_lora_rank + config.qk_rope_head_dim, 0))
        else:
            head_dim = getattr(config, "head_dim", None) or (
                config.hidden_size // config.num_attention_heads
            )
            widths.append((config.num_key_value_heads * head_dim,) * 2)
    return widths


def lower(model, engine) -> Lowered:
    """The decoder program of a model whose operators are loaded and whose cache exists."""
    base = model.model
    outer = {"model.embed_tokens": base.embed_tokens, "model.norm": base.norm,
             "lm_head": model.lm_head}  # fmt: skip
    missing = [name for name, module in outer.items() if getattr(module, "core", None) is None]
    if missing:
        return Lowered(None, [f"not lowered: {_why(name, outer[name])}" for name in missing])
    nodes, notes = [], []
    for index, layer in enumerate(base.layers):
        name = f"model.layers.{index}"
        parts = {n: getattr(layer, n) for n in
                 ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")}  # fmt: skip
        without = [n for n, part in parts.items() if getattr(part, "core", None) is None]
        if without:
            notes += [f"{name} runs in torch: {_why(f'{name}.{n}', parts[n])}" for n in without]
            nodes.append(
                _core.callback_node(name, LayerCall(model, engine, index), model.config.hidden_size)
            )
            continue
        cores = [part.core for part in parts.values()]
        nodes.append(_core.attention_node(f"{name}.self_attn", cores[0], cores[1], index))
        nodes.append(_core.feed_forward_node(f"{name}.mlp", cores[2], cores[3]))
    decoder = _core.Decoder(
        engine.context, base.embed_tokens.core, nodes, base.norm.core, model.lm_head.core,
        engine.kv, engine.arithmetic,
    )  # fmt: skip
    return Lowered(decoder, notes)


def _why(name: str, module) -> str:
    return getattr(module, "reason", None) or f"{name} is a torch {type(module).__name__}"


class LayerCall:
    """Runs one transformers layer on the core's residual stream, sequence by sequence."""

    def __init__(self, model, engine, index: int):
        self.model, self.engine, self.index = model, engine, index

    @torch.no_grad()
    def __call__(self, hidden, position, sequence, is_prompt, sequences) -> None:
        """hidden: [m, hidden_size], changed in place; the rest as in the core's Step."""
        base = self.model.model
        for s in np.unique(sequence):
            chosen = np.flatnonzero(sequence == s)
            start, count = int(position[chosen[0]]), len(chosen)
            cache = PagedCache(self.engine, 1, [sequences[s]])
            cache.columns_seen = start
            cache.columns = [list(range(start))]
            cache._new = [np.arange(count)]
            # The core has extended the sequence by all rows of the step already.
            positions = torch.from_numpy(position[chosen].astype(np.int64))[None]
            x = torch.from_numpy(hidden[chosen])[None]
            marks = np.empty(count, np.uint8)
            for prompt in (0, 1):
                where = is_prompt[chosen] == prompt
                marks[where] = _core.rounding(
                    self.engine.arithmetic, position[chosen][where], bool(prompt)
                )
            self.engine.rows = _rows(marks, position[chosen], sequences[s])
            try:
                out = base.layers[self.index](
                    x,
                    attention_mask=_causal(count, start),
                    position_embeddings=base.rotary_emb(x, position_ids=positions),
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            finally:
                self.engine.rows = None
            hidden[chosen] = (out[0] if isinstance(out, tuple) else out)[0].float().numpy()


def _rows(marks, position, sequence):
    from ktransformers.operators.engine import Rows

    count = len(position)
    return Rows(marks, np.arange(count), position, np.zeros(count, np.int32), [sequence])


def _causal(count: int, start: int) -> torch.Tensor | None:
    """Additive mask [1, 1, count, start + count]; None where a single row sees everything."""
    if count == 1:
        return None
    mask = torch.full((count, start + count), float("-inf"))
    return torch.triu(mask, diagonal=start + 1)[None, None]
