"""Where a model's modules go, and what that takes of memory, before a weight is read."""

from dataclasses import dataclass
from typing import Any

from ktransformers.operators.engine import cpu_kv_type
from ktransformers.optimize.cache_types import CARD_TYPE, check_has_card
from ktransformers.optimize.card_steps import planned_ram
from ktransformers.optimize.fit_here import rules_for_loading
from ktransformers.optimize.held import on_cards
from ktransformers.optimize.prompt_chunk import prompt_chunk
from ktransformers.optimize.quant import auto_quant
from ktransformers.optimize.rules import RuleSet, load_rules
from ktransformers.runtime import memory


def chosen_rules(
    gguf, family, path: str | None, cache_lens: int, gpu: str, kv_type: str | None
) -> tuple[RuleSet, list[str]]:
    """(a user's rules or what the planner makes of this machine, lines for the user). Raises:
    UserError."""
    if path:
        return load_rules(path), []
    return rules_for_loading(gguf, family, cache_lens, gpu, kv_type == CARD_TYPE)


def planned(model, gguf, family, rules: RuleSet, device_map: dict[str, str] | None, gpu: str):
    """The plan of a model on the meta device; gguf.types has the types it loads tensors as.

    Raises: UserError.
    """
    from ktransformers.optimize.gpus import cuda_devices
    from ktransformers.optimize.plan import PlanContext, plan
    from ktransformers.optimize.tree import describe

    context = PlanContext(device_map or {}, cuda_devices(gpu), auto_quant(gguf))
    made = plan(describe(model, family, gguf), rules, context)
    for row in made.rows:
        gguf.types.update(row.types)
    return made


@dataclass(frozen=True)
class Asked:
    """What a plan's memory depends on besides: an Engine's fields of these names, chunk_size: rows
    of a prompt, where somebody says how many. pin_left: bytes that may be pinned, None: all."""

    cache_lens: int
    kv_type: str | None = None
    fp8_cache: bool = False
    defer_experts: int = 0
    pin_left: int | None = None
    chunk_size: int | None = None


def foretold(made, gguf, config: dict, asked: Asked) -> memory.MemoryPlan:
    """What a plan's model will take of memory. Raises: UserError."""
    steps = planned_ram(
        config, made.placements, asked.cache_lens, prompt_chunk(config), asked.chunk_size,
        defers=asked.defer_experts > 0, pins_all=asked.pin_left is None,
    )  # fmt: skip
    return memory.memory_plan(
        gguf, config, asked.cache_lens, asked.kv_type, on_cards(made), asked.fp8_cache, steps
    )


def memory_of(gguf, options: dict[str, Any]) -> memory.MemoryPlan:
    """What load_model with such options would take of memory.

    Imports torch where there are cards: what they get of a model hangs on its modules.
    Raises: UserError.
    """
    from ktransformers.optimize.gpus import cuda_devices
    from ktransformers.optimize.nvidia import pin_limit
    from ktransformers.runtime.loading import build_on_meta, model_config

    family, config = model_config(gguf, options["model_path"])
    kv_type, gpu = options.get("kv_type"), options["gpu"]
    asked = Asked(
        options["cache_lens"] or memory.CACHE_LENS,
        cpu_kv_type(kv_type, options["activations"]),
        kv_type == CARD_TYPE,
        options["defer_experts"] or 0,
        0 if options.get("in_place") else pin_limit(),
        options["chunk_size"],
    )
    if not cuda_devices(gpu):
        check_has_card(kv_type, ())
        return memory.memory_plan(gguf, config, asked.cache_lens, asked.kv_type)
    path = options["optimize_config_path"]
    rules, _ = chosen_rules(gguf, family, path, asked.cache_lens, gpu, kv_type)
    made = planned(build_on_meta(family, config), gguf, family, rules, options["device_map"], gpu)
    check_has_card(kv_type, (row.device for row in made.placements))
    return foretold(made, gguf, config, asked)
