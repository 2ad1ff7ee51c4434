"""What a model will take of memory, said before it is taken. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ktransformers import _core
from ktransformers.checkpoint.pieces import PLAIN, type_bytes
from ktransformers.errors import UserError
from ktransformers.optimize.cache_types import card_cache_bytes
from ktransformers.optimize.held import OnCards
from ktransformers.optimize.quant import auto_quant

# Scratch of a step, page tables, the interpreter's growth while loading.
WORKING_BYTES = 256 << 20
CACHE_LENS = 8192  # positions, where none are asked for
SWAP_NOTICED = 64 << 20
NO_CARDS = OnCards()


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, of RAM but for on_cards. weights: repacked matrices; embedding: read from the file's
    pages; cache: keys and values of cache_lens positions; cards: what steps on GPUs take of RAM;
    on_cards: {card: (weights, cache) there}; total, available: what this process may have in all
    and now."""

    weights: int
    embedding: int
    cache: int
    cache_lens: int
    total: int
    available: int
    is_grouped: bool
    cards: int = 0
    on_cards: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.cards + WORKING_BYTES

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    @property
    def is_tight(self) -> bool:
        """Whether the file's pages in the system's cache would not fit beside the copy."""
        return self.needed + self.weights + self.embedding > self.available

    def lines(self) -> list[str]:
        """As `--dry-run` prints it."""
        where = "the control group's" if self.is_grouped else "this machine's"
        verdict = "enough" if self.fits else "not enough"
        rows = {
            "weights": (
                self.weights,
                f"repacked in memory; {gib(self.embedding)} stay in the file",
            ),
            "cache": (self.cache, f"for {self.cache_lens} positions"),
            "working": (WORKING_BYTES + self.cards, "for steps and loading"),
            "needed": (self.needed, "in all"),
            "available": (self.available, f"of {where} {gib(self.total)}: {verdict}"),
        }
        for device, (weights, cache) in self.on_cards.items():
            parts = f"weights {gib(weights)}, cache {gib(cache)}; steps take what is left"
            rows[device] = (weights + cache, f"on the card: {parts}")
        return [f"{name:10}{gib(count):>11}  {text}" for name, (count, text) in rows.items()]


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def cache_widths(config: dict) -> list[tuple[int, int, int]]:
    """Values that each layer keeps per position, (keys, values, key heads they are of), by
    transformers' fields."""
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        return [(config["kv_lora_rank"] + config["qk_rope_head_dim"], 0, 1)] * layers
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = config["num_key_value_heads"]
    return [(heads * width, heads * width, heads)] * layers


def default_kv_type(widths: list[tuple[int, int, int]]) -> str:
    """i16 where every layer has keys and values of heads that fill its tiles, else f16."""
    whole = all(values and values // heads % 32 == 0 for _, values, heads in widths)
    return "i16" if whole else "f16"


def tensor_bytes(gguf) -> dict[str, int]:
    """Of each tensor, in the type it will have: of a folder of floats for which no plan has chosen
    them yet, those that `quant: auto` takes."""
    tensors = gguf.tensors
    kind = None if gguf.types else auto_quant(gguf)
    if kind is None:
        return {name: gguf.tensor(name).nbytes for name in tensors}
    return {
        name: info.nbytes
        if len(info.shape) < 2 or info.shape[-1] % 256 or info.type not in PLAIN
        else type_bytes(kind, math.prod(info.shape))
        for name, info in tensors.items()
    }


def memory_plan(
    gguf,
    config: dict,
    cache_lens: int,
    kv_type: str | None,
    there: OnCards = NO_CARDS,
    fp8_cache: bool = False,
    cards: int = 0,
) -> MemoryPlan:
    """kv_type: of layers on the CPU, as load_model takes it. there: what cards have, with
    fp8_cache in FP8. cards: what their steps take of RAM.

    Raises: UserError for a type this model cannot have.
    """
    widths = cache_widths(config)
    k_type, _, v_type = (kv_type or default_kv_type(widths)).partition("+")
    own = [(0, 0, 1) if layer in there.layers else width for layer, width in enumerate(widths)]
    try:  # a type is refused wherever the layers are
        _core.kv_bytes_per_position(widths, k_type, v_type or k_type)
        position = _core.kv_bytes_per_position(own, k_type, v_type or k_type)
    except ValueError as error:
        raise UserError(str(error)) from error
    sizes = tensor_bytes(gguf)
    is_tied = "output.weight" not in gguf.tensors
    held = sum(
        nbytes - int(nbytes * there.tensors.get(name, 0.0))
        for name, nbytes in sizes.items()
        if is_tied or name != "token_embd.weight"
    )
    devices = [*there.layers.values()]
    layer = card_cache_bytes(config, cache_lens, fp8_cache)
    info = _core.memory_info()
    return MemoryPlan(
        weights=held,
        embedding=sizes["token_embd.weight"],
        cache=position * cache_lens,
        cache_lens=cache_lens,
        total=info["total"],
        available=info["available"],
        is_grouped=info["is_grouped"],
        cards=cards,
        on_cards={
            device: (nbytes, layer * devices.count(device))
            for device, nbytes in there.weights.items()
        },
    )


def check_fits(plan: MemoryPlan, path: str) -> None:
    """Raises: UserError with the numbers, for a model that memory does not hold."""
    if plan.fits:
        return
    raise UserError(
        f"{path}: needs {gib(plan.needed)} of memory (weights {gib(plan.weights)}, cache "
        f"{gib(plan.cache)} for {plan.cache_lens} positions, steps and loading "
        f"{gib(plan.cards + WORKING_BYTES)}), {gib(plan.available)} of "
        f"{gib(plan.total)} are available; free memory, lower cache_lens, or run it in place from "
        "disk with --in_place true, which is slow"
    )


def warnings() -> list[str]:
    """What will make this machine slower than it could be, a line each."""
    info, nodes = _core.memory_info(), _core.cpu_info()["numa_nodes"]
    lines = []
    if info["swap_used"] > SWAP_NOTICED:
        lines.append(
            f"{info['swap_used'] / 2**30:.1f} GiB of swap are in use: weights that are swapped out "
            "are slow; free memory or run `swapoff -a`"
        )
    if info["numa_balancing"] and nodes > 1:
        lines.append(
            "the kernel's NUMA balancing is on and will move weights away from the cores that read "
            "them; run `sysctl kernel.numa_balancing=0`"
        )
    return lines
