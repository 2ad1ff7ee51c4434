"""How much work a model's step is, per phase: bytes read and operations, from the file's tensors.

The limits follow from it: a generated token cannot take less than its bytes at the machine's read
bandwidth; a prompt not less than its linear operations at the int8 peak (activations in two halves
count twice) plus its attention at the bf16 peak. Bytes are those of the file: R16 has the same.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

PHASES = ("attention", "dense", "router", "experts", "shared", "head")
EXACT_POSITIONS = 64  # of a prompt are evaluated in two halves by default


@dataclass
class Phase:
    """nbytes: weights that one token reads. ops: multiplies and adds of one token."""

    nbytes: float = 0.0
    ops: float = 0.0


@dataclass
class Work:
    """Of one model. experts, used: routed experts and how many a token takes (0: a dense model).

    kv_bytes: a position's keys and values in f16, all layers. attention_ops: of one query against
    one position, all layers.
    """

    phases: dict[str, Phase] = field(default_factory=lambda: {p: Phase() for p in PHASES})
    experts: int = 0
    used: int = 0
    kv_bytes: float = 0.0
    attention_ops: float = 0.0

    def decode_bytes(self, context: float) -> float:
        """Read by one generated token behind `context` positions."""
        return sum(phase.nbytes for phase in self.phases.values()) + self.kv_bytes * context

    def linear_ops(self, tokens: int) -> float:
        """Of a prompt from position 0, the halves of its first positions counted twice."""
        exact = min(tokens, EXACT_POSITIONS)
        body = sum(phase.ops for name, phase in self.phases.items() if name != "head")
        return body * (tokens + exact) + 2 * self.phases["head"].ops  # one row of logits

    def prompt_seconds(self, tokens: int, int8: float, bf16: float) -> float:
        """The least a prompt can take; int8, bf16: operations per second."""
        attention = self.attention_ops * tokens * (tokens + 1) / 2
        return self.linear_ops(tokens) / int8 + attention / bf16

    def rows_seconds(self, rows: int, context: float, read: float, int8: float) -> float:
        """The least a step takes that decodes one token for each of `rows` sequences: per phase
        the larger of distinct bytes at `read` bytes/s and operations in halves at `int8` ops/s."""
        total = rows * self.kv_bytes * context / read
        for name, phase in self.phases.items():
            nbytes = phase.nbytes
            if name == "experts" and self.experts:
                nbytes *= uniform_distinct(self.experts, self.used, rows) / self.used
            total += max(nbytes / read, 2 * rows * phase.ops / int8)
        return total


def work_of(tensors: Iterable, config: dict) -> Work:
    """tensors: with name, shape (torch's order) and nbytes. config: transformers' fields."""
    tensors = list(tensors)
    counts = ("num_experts", "n_routed_experts", "num_local_experts")
    experts = next((config[name] for name in counts if name in config), 0)
    work = Work(experts=experts, used=config["num_experts_per_tok"] if experts else 0)
    is_tied = not any(tensor.name == "output.weight" for tensor in tensors)
    for tensor in tensors:
        name = phase_of(tensor.name, is_tied)
        if name is None:
            continue
        share = work.used / experts if name == "experts" else 1.0
        work.phases[name].nbytes += tensor.nbytes * share
        if len(tensor.shape) > 1:
            work.phases[name].ops += 2 * math.prod(tensor.shape) * share
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if "kv_lora_rank" in config:
        rope = config["qk_rope_head_dim"]
        width = config["kv_lora_rank"] + rope
        per_head = config["qk_nope_head_dim"] + rope + config["v_head_dim"]
        work.attention_ops = 2.0 * heads * per_head * layers
    else:
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        width = 2 * config["num_key_value_heads"] * head_dim
        work.attention_ops = 4.0 * heads * head_dim * layers
    work.kv_bytes = 2.0 * width * layers
    return work


def phase_of(name: str, is_tied: bool) -> str | None:
    """The phase that reads a tensor; None for an embedding of which a token reads one row."""
    if name.startswith("token_embd"):
        return "head" if is_tied else None
    if name.startswith("output"):
        return "head"
    if name.startswith("rope_freqs"):
        return None
    if "ffn_gate_inp." in name or "exp_probs_b" in name:
        return "router"
    if "_exps" in name:
        return "experts"
    if "_shexp" in name:
        return "shared"
    if "ffn_" in name and "ffn_norm" not in name:
        return "dense"
    return "attention"


def uniform_distinct(experts: int, used: int, tokens: int) -> float:
    """Distinct experts that `tokens` tokens meet when each takes `used` of them evenly."""
    return experts * (1.0 - (1.0 - used / experts) ** tokens)
