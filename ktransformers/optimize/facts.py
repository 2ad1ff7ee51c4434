"""What a placement depends on: a model's tensors in groups, from a header alone. No torch.

A group is what moves as one: the attention of a layer, its shared experts, its dense feed-forward,
its routed experts, the head, the embedding.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ktransformers.checkpoint.pieces import PLAIN, fitting_type, type_bytes
from ktransformers.operators.int4 import form_of, trouble
from ktransformers.optimize.cache_types import grouped_bytes, latent_bytes

# In the order in which they are worth a GPU's memory: all of the first four are read for every
# token; attention also reads the cache, and shared experts run beside the routed ones.
KINDS = ("attention", "shared", "dense", "head", "experts", "embedding")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# What a card can have in int4: all matrices but kv_b, which attention takes apart.
_INT4 = re.compile(
    r"attn_(q|k|v|output|q_a|q_b|kv_a_mqa)\.weight$"
    r"|ffn_(gate|up|down)(_shexp|_exps|\.\d+)?\.weight$"
    r"|^output\.weight$"
)


@dataclass
class Group:
    """nbytes: in memory; active: bytes read for one token; ops: of one token, 2 per weight;
    layer -1: outside of the layers."""

    kind: str
    layer: int
    nbytes: int = 0
    active: float = 0.0
    ops: float = 0.0

    @property
    def intensity(self) -> float:
        """The part of its bytes that a token reads."""
        return self.active / self.nbytes if self.nbytes else 0.0


@dataclass
class ModelFacts:
    """groups by (kind, layer). kv_bytes: of one position and layer, f16;
    fp8_kv_bytes: as cards keep it in FP8, which fp8_cache asks for. attention_ops: of one
    generated token and layer, per position of the context; prompt_ops: of a prompt's token, for
    which latent keys and values are expanded; expand_ops: of doing that for a position of a layer,
    once for each chunk of a prompt."""

    name: str
    layers: int
    hidden: int
    groups: dict[tuple[str, int], Group] = field(default_factory=dict)
    experts: int = 0
    used: int = 0
    kv_bytes: int = 0
    fp8_kv_bytes: int = 0
    fp8_cache: bool = False
    attention_ops: float = 0.0
    prompt_ops: float = 0.0
    expand_ops: float = 0.0

    @property
    def card_kv_bytes(self) -> int:
        """Of one position and layer, on a card."""
        return self.fp8_kv_bytes if self.fp8_cache else self.kv_bytes

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups.values())

    @property
    def active(self) -> float:
        return sum(group.active for group in self.groups.values())

    @property
    def ops(self) -> float:
        """Of one token's linears."""
        return sum(group.ops for group in self.groups.values())

    @property
    def head_ops(self) -> float:
        """Of the head, which one row of a prompt needs."""
        head = self.groups.get(("head", -1))
        return head.ops if head else 0.0

    @property
    def experts_bytes(self) -> int:
        return sum(group.nbytes for group in self.of("experts"))

    def touched(self, tokens: int) -> float:
        """Bytes of the routed experts that so many tokens meet, if they choose evenly."""
        if not self.experts:
            return 0.0
        return self.experts_bytes * (1 - (1 - self.used / self.experts) ** tokens)

    def of(self, kind: str) -> list[Group]:
        """The groups of a kind in the order of the layers."""
        return [group for key, group in sorted(self.groups.items()) if key[0] == kind]


def facts_of(
    name: str, tensors: Iterable[tuple[str, tuple[int, ...], int]], keys: Mapping[str, Any]
) -> ModelFacts:
    """tensors: (GGUF name, shape, bytes); keys: the metadata."""
    arch = keys["general.architecture"]

    def key(short: str, default: int = 0) -> int:
        return int(keys.get(f"{arch}.{short}", default) or default)

    layers = key("block_count") - key("nextn_predict_layers")
    facts = ModelFacts(name, layers, key("embedding_length"))
    facts.experts, facts.used = key("expert_count"), key("expert_used_count")
    heads = key("attention.head_count", 1)
    latent = key("attention.kv_lora_rank")
    if latent:
        rope = key("rope.dimension_count")
        facts.kv_bytes = latent_bytes(latent, rope, fp8=False)
        facts.fp8_kv_bytes = latent_bytes(latent, rope, fp8=True)
        facts.attention_ops = 2.0 * heads * (2 * latent + rope)
        per_head = key("attention.key_length_mla", key("attention.key_length", latent + rope))
        value = key("attention.value_length_mla", key("attention.value_length", latent))
        facts.prompt_ops = 2.0 * heads * (per_head + value)
        facts.expand_ops = 2.0 * heads * (per_head - rope + value) * latent
    else:
        width = key("attention.key_length", facts.hidden // heads)
        kv_heads = key("attention.head_count_kv", heads)
        facts.kv_bytes = grouped_bytes(kv_heads, width, fp8=False)
        facts.fp8_kv_bytes = grouped_bytes(kv_heads, width, fp8=True)
        facts.attention_ops = facts.prompt_ops = 4.0 * heads * width
    tied = True
    for tensor, shape, nbytes in tensors:
        kind, layer = kind_of(tensor)
        if layer >= layers:
            continue
        tied = tied and tensor != "output.weight"
        add(facts, kind, layer, shape, nbytes)
        if tensor == "token_embd.weight":
            embedding = (shape, nbytes)
    if tied:  # the head reads the embedding's bytes; they are in memory once
        shape, nbytes = embedding
        group = facts.groups.setdefault(("head", -1), Group("head", -1))
        group.active, group.ops = float(nbytes), 2.0 * shape[0] * shape[1]
        group.nbytes += nbytes
        facts.groups["embedding", -1].nbytes -= nbytes
    return facts


def add(facts: ModelFacts, kind: str, layer: int, shape: tuple[int, ...], nbytes: int) -> None:
    """Counts one tensor into its group."""
    group = facts.groups.setdefault((kind, layer), Group(kind, layer))
    values = 1
    for size in shape:
        values *= size
    share = 1.0
    if kind == "experts" and facts.experts:
        share = facts.used / facts.experts
    elif kind == "embedding":
        share = 1 / shape[0]
    group.nbytes += nbytes
    group.active += nbytes * share
    group.ops += 2.0 * values * share if kind != "embedding" else 0.0


def kind_of(tensor: str) -> tuple[str, int]:
    """(kind, layer) of a GGUF tensor; norms and routers go with their layer's attention."""
    match = _BLOCK.fullmatch(tensor)
    if match is None:
        return ("embedding" if tensor.startswith("token_embd") else "head"), -1
    layer, rest = int(match[1]), match[2]
    if re.match(r"ffn_(gate|up|down)(_exps|\.\d+)\.", rest):
        return "experts", layer
    if "_shexp." in rest:
        return "shared", layer
    if re.match(r"ffn_(gate|up|down)\.", rest):
        return "dense", layer
    return "attention", layer


def facts_of_model(
    gguf, quant: str | None = None, int4: Callable[[str, int], str | None] | None = None
) -> ModelFacts:
    """Of an open file or folder; reads its header only. quant: what matrices are loaded as.
    int4(kind, layer): the int4 that a card has a group's matrices in, or None."""
    keys = {k: gguf.metadata[k] for k in gguf.metadata if not k.startswith("tokenizer.")}
    tensors = []
    for info in gguf.tensors.values():
        nbytes = info.nbytes
        if quant and len(info.shape) > 1 and info.type in PLAIN:
            kind = fitting_type(quant, info.shape[-1])
            nbytes = type_bytes(kind, math.prod(info.shape))
        asked = int4(*kind_of(info.name)) if int4 and _INT4.search(info.name) else None
        stored = kind if quant and "_exps" in info.name else info.type
        if asked and not trouble(asked, stored, info.shape[-1]):
            *count, rows, cols = info.shape
            nbytes = math.prod(count) * form_of(asked, stored).nbytes(rows, cols)
        tensors.append((info.name, info.shape, nbytes))
    return facts_of(str(keys.get("general.name") or gguf.path), tensors, keys)
