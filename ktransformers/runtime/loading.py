"""checkpoint -> model on meta -> plan -> apply -> lower: one call."""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint.gguf import GGUFFile, open_model
from ktransformers.checkpoint.weight_image import ImageWriter, WeightStore, open_image
from ktransformers.errors import UserError
from ktransformers.optimize.cache_types import check_has_card
from ktransformers.optimize.prompt_chunk import LEAST, prompt_chunk
from ktransformers.optimize.quant import as_loaded
from ktransformers.runtime import memory
from ktransformers.runtime.collector import paused_collector

log = logging.getLogger("ktransformers")


@dataclass(frozen=True)
class WeightPlace:
    """Where repacked weights are kept. weight_cache: a folder, for the next start; in_place: they
    are read from there and take no memory of their own. gpu: "off" leaves cards alone."""

    weight_cache: str | Path | None = None
    in_place: bool = False
    gpu: str = "auto"


def row_kinds(sequence: np.ndarray, is_prompt: bool) -> np.ndarray:
    """[m] marks of the core's Step for rows of these sequence numbers: 0 generated, 1 part of a
    prompt, 2 of one so long that latent attention expands its keys and values."""
    if not is_prompt or not len(sequence):
        return np.full(len(sequence), is_prompt, np.uint8)
    return np.where(np.bincount(sequence)[sequence] >= _core.LONG_PROMPT, 2, 1).astype(np.uint8)


@dataclass
class Runtime:
    """What a loaded model carries beside its modules (`model.kt`).

    program: has the core's `step`: the decoder, or what runs the modules one by one. decoder: the
    core's, None where nothing is lowered. lock: held while a step runs; the workers are one team.
    """

    engine: Any
    gguf: Any
    family: Any
    plan: Any
    program: Any = None
    decoder: Any = None
    notes: list[str] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)  # what cards read of the experts by themselves
    last_stats: Any = None
    chunk_size: int = LEAST
    lock: Any = field(default_factory=threading.RLock)

    def evaluate(self, token, position, sequence, is_prompt: bool, sequences, rows) -> np.ndarray:
        """Steps of at most chunk_size rows -> logits of `rows` (ascending), [rows, vocab].

        token, position, sequence: [m] as in the core's Step. Raises: UserError, leaving the
        sequences as long as they were.
        """
        before = [one.length for one in sequences]
        marks = row_kinds(sequence, is_prompt)
        rows, parts = np.asarray(rows, np.int64), []
        try:
            with self.lock:
                for start in range(0, len(token), self.chunk_size):
                    part = slice(start, start + self.chunk_size)
                    wanted = rows[(rows >= start) & (rows < part.stop)] - start
                    logits, _ = self.program.step(
                        token[part], position[part], sequence[part], marks[part], sequences, wanted
                    )
                    parts.append(logits)
        except BaseException as error:
            for one, length in zip(sequences, before, strict=True):
                one.truncate(length)
            if isinstance(error, ValueError):
                raise UserError(str(error)) from error
            raise
        if not parts:
            return np.zeros((0, self.program.vocab_size), np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def fits(self, sequences, sequence: np.ndarray) -> bool:
        """Whether the cache has pages for rows of these sequence numbers behind the others."""
        pool, page = self.engine.kv, _core.KV_PAGE
        new = np.bincount(sequence, minlength=len(sequences))
        pages = sum(-(-(one.length + int(n)) // page) - len(one.pages)
                    for one, n in zip(sequences, new, strict=True))  # fmt: skip
        return pool.pages_in_use + pages <= pool.page_limit

    def check_room(self, prompts: list[list[int]]) -> None:
        """Raises: UserError for a prompt that the whole cache could not hold."""
        longest = max(map(len, prompts))
        if longest > self.engine.cache_lens:
            raise UserError(
                f"the prompt has {longest} tokens, the cache holds {self.engine.cache_lens}; "
                "raise cache_lens"
            )

    def describe(self) -> str:
        """What was chosen: ISA, threads, rules, arithmetic, memory."""
        from ktransformers.optimize.report import size_text

        context, engine = self.engine.context, self.engine
        rules = Path(self.plan.rules_path).name
        weights = sum(self.plan.device_bytes().values())
        cache = engine.kv.bytes_per_position
        return (
            f"{context.isa}, {context.threads} threads, rules {rules}, activations "
            f"{engine.activations}, weights {size_text(weights)}, cache {engine.cache_text} "
            f"{size_text(cache)} a position, {size_text(cache * engine.cache_lens)} for "
            f"{engine.cache_lens}"
            + (", fp8 on cards" if engine.fp8_cache else "")
            + "".join(f"; {line}" for line in self.pinned)
        )


@paused_collector()
def load_model(
    gguf_path: str | Path | GGUFFile,
    model_path: str | None = None,
    optimize_config_path: str | None = None,
    cpu_infer: int | None = None,
    activations: str = "auto",
    cache_lens: int = 8192,
    kv_type: str | None = None,
    lowered: bool = True,
    progress: Callable[[int, int], None] | None = None,
    device_map: dict[str, str] | None = None,
    experts_per_token: int | None = None,
    weight_cache: str | Path | None = None,
    in_place: bool = False,
    gpu: str = "auto",
    defer_experts: int | None = None,
    chunk_size: int | None = None,
):
    """The model in a GGUF file as a transformers PreTrainedModel run by the core.

    gguf_path: file, part of a split model, folder, or an open file. model_path: a Hugging Face
    folder or id whose config and tokenizer files win over the metadata. optimize_config_path: rule
    file; None lets the planner place it (without GPUs: the family's own rules). cpu_infer: worker
    threads; None takes every usable core.
    activations: "auto" | "exact" | "f32" (see Arithmetic). cache_lens: positions the cache may
    hold, over all sequences.
    kv_type: i16 (int16 with a step per head and position, finer than f16 and read as it is), f16,
    bf16, f32, q8_0 or "f16+q8_0"; None takes i16, f16 where heads do not fill its tiles or
    the cache holds latents, f32 in f32 mode. Layers on a card keep f16 whatever it says, but "fp8"
    is for them: E4M3 there, None's choice elsewhere.
    lowered: False runs module by module. experts_per_token: fewer than the model's own; it then
    says something else, how different `ktransformers calibrate` measures.
    weight_cache: folder that keeps the repacked weights for the next start. in_place: weights stay
    on disk, repacked in that folder (None takes the user's cache), and are read from there: for
    models larger than memory. gpu: "off" leaves cards alone: rules that name them mean the CPU.
    defer_experts: so many of a generated token's experts on the CPU, those with the least weights,
    are added by the next layer, while the card is in it: faster, and not what the model says.
    chunk_size: rows of a prompt evaluated at a time; None: as many as its experts and cards make
    good use of.
    Raises: UserError.
    """
    from ktransformers.runtime.planning import chosen_rules

    if gpu not in ("auto", "off"):
        raise UserError(f"gpu='{gpu}': choose auto or off")
    checked_chunk(chunk_size)
    threads = usable_threads(cpu_infer)
    gguf = gguf_path if isinstance(gguf_path, GGUFFile) else open_model(gguf_path)
    family, config = model_config(gguf, model_path)
    if experts_per_token is not None:
        config = with_experts(config, experts_per_token)
    rules, expected = chosen_rules(gguf, family, optimize_config_path, cache_lens, gpu, kv_type)
    for line in expected:
        log.warning("%s: %s", gguf.path, line)

    from ktransformers.operators.engine import Engine

    engine = Engine(threads, activations, kv_type, cache_lens)
    if defer_experts is not None:
        engine.defer_experts = checked_deferral(config, defer_experts)
    model = build_on_meta(family, config)
    place = WeightPlace(weight_cache, in_place, gpu)
    bind(model, gguf, family, config, rules, engine, lowered, progress, device_map, place,
         chunk_size)  # fmt: skip
    set_generation_config(model, gguf, model_path)
    return model.eval()


def bind(
    model,
    gguf,
    family,
    config: dict,
    rules,
    engine,
    lowered: bool = True,
    progress: Callable[[int, int], None] | None = None,
    device_map: dict[str, str] | None = None,
    place: WeightPlace = WeightPlace(),
    chunk_size: int | None = None,
) -> None:
    """plan -> apply -> lower: makes `model`, on the meta device, one that the core runs.

    config: the fields the tensors are named by. Sets `model.kt`. Raises: UserError.
    """
    from ktransformers.checkpoint.weights import Weights
    from ktransformers.optimize.apply import apply
    from ktransformers.optimize.nvidia import pin_limit, vram_limit
    from ktransformers.runtime.lowering import cache_widths, lower
    from ktransformers.runtime.planning import Asked, foretold, planned
    from ktransformers.runtime.torch_layers import ModuleProgram

    made = planned(model, gguf, family, rules, device_map, place.gpu)
    check_lowered(made, lowered)
    if engine.fp8_cache:
        check_has_card("fp8", (row.device for row in made.placements))
    engine.vram_limit = vram_limit() or 0
    engine.pin_left = pin_limit()
    if place.in_place:  # no memory of ours, and it may be more than there is
        engine.pin_left, engine.unpinned_because = 0, "--in_place leaves them in the file"
    cpu_rows = prompt_chunk(config)
    engine.kv_type = engine.kv_type or memory.default_kv_type(memory.cache_widths(config))
    asked = Asked(engine.cache_lens, engine.kv_type, engine.fp8_cache, engine.defer_experts,
                  engine.pin_left, chunk_size)  # fmt: skip
    prepare_memory(gguf, engine, place, foretold(made, gguf, config, asked))
    weights = Weights(gguf, model.config.to_dict() | config)
    try:
        apply(model, made.rows, weights, engine, progress)
        check_all_used(weights)
        engine.store.finish()
    except BaseException:
        engine.store.abandon()
        raise
    made = as_loaded(made, gguf)
    engine.widths = cache_widths(model)
    engine.make_pool(engine.widths)
    defers = False
    runtime = Runtime(
        engine, gguf, family, made, notes=list(made.notes), chunk_size=chunk_size or cpu_rows
    )
    if lowered and not made.lowered:
        runtime.notes.append(f"not lowered: {made.rules_path} gives model no operator model")
    elif lowered:
        result = lower(model, engine, cpu_rows, chunk_size)
        runtime.decoder = result.decoder
        runtime.notes += result.notes
        runtime.pinned = result.pinned
        runtime.chunk_size = chunk_size or max(cpu_rows, result.prompt_rows)
        defers = result.defers
    if engine.int4.matrices:
        runtime.notes.append(engine.int4.line())
    if engine.defer_experts:
        runtime.notes.append(deferral_note(engine.defer_experts, defers))
    for note in runtime.notes:
        log.warning("%s", note)
    runtime.program = runtime.decoder or ModuleProgram(model, engine)
    model.kt = runtime
    model.config.name_or_path = str(gguf.path)
    mark_as_placed(model)


def with_experts(config: dict, experts_per_token: int) -> dict:
    """The configuration with fewer experts per token. Raises: UserError."""
    have = config.get("num_experts_per_tok")
    if not have or not 1 <= experts_per_token <= have:
        raise UserError(
            f"--experts_per_token {experts_per_token}: the model uses {have or 'no'} experts per "
            "token; give at most that many"
        )
    return config | {"num_experts_per_tok": experts_per_token}


def checked_deferral(config: dict, defer_experts: int) -> int:
    """Raises: UserError where so many experts cannot be deferred."""
    used = config.get("num_experts_per_tok") or 0
    if not 1 <= defer_experts < used:
        can = f"1 to {used - 1} of its {used}" if used > 1 else "none of its"
        raise UserError(f"--defer_experts {defer_experts}: {can} experts per token can be deferred")
    return defer_experts


def checked_chunk(chunk_size: int | None) -> None:
    """Raises: UserError where that many rows of a prompt cannot be evaluated at a time."""
    is_count = isinstance(chunk_size, int) and not isinstance(chunk_size, bool)
    if chunk_size is not None and not (is_count and 1 <= chunk_size < 1 << 31):
        raise UserError(f"chunk_size={chunk_size!r}: give a number of tokens, at least 1, or None")


def deferral_note(count: int, defers: bool) -> str:
    """Raises: UserError where no layer would defer."""
    if not defers:
        raise UserError(
            f"--defer_experts {count}: no card has two layers in a row whose experts the CPU "
            "computes; leave it out"
        )
    return (
        f"{count} of a token's experts are added one layer late (--defer_experts): what the model "
        "says is no longer what its file says"
    )


def check_lowered(made, lowered: bool) -> None:
    """Refuses a plan that puts modules on a card and does not lower. Raises: UserError."""
    for row in made.placements:
        if not row.device.startswith("cuda") or (lowered and made.lowered):
            continue
        why = f"{made.rules_path} gives model no operator model" if lowered else "lowered is False"
        raise UserError(
            f"{row.rule or made.rules_path}: {row.module} is on {row.device}, where only lowered "
            f"programs run, and {why}; --device-map {row.device}=cpu takes the CPU"
        )


def prepare_memory(gguf, engine, place: WeightPlace, made: memory.MemoryPlan) -> None:
    """Checks that the model fits, warns of what slows it, and chooses where matrices come from.

    Raises: UserError with the numbers where memory does not hold the model.
    """
    if not place.in_place:
        memory.check_fits(made, str(gguf.path))
    for line in memory.warnings():
        log.warning("%s", line)
    gguf.drop_from_cache(made.is_tight or place.in_place)
    engine.store = weight_store(gguf, place)


def weight_store(gguf, place: WeightPlace) -> WeightStore:
    """Raises: UserError where an image must be written and cannot."""
    if place.weight_cache is None and not place.in_place:
        return WeightStore()
    named = place.weight_cache
    folder = Path(named).expanduser() if named else default_weight_cache()
    if reader := open_image(folder, gguf.files):
        return WeightStore(reader=reader, in_place=place.in_place)
    # Row groups and pages are filled up: a little more than the file.
    most = gguf.bytes_total + gguf.bytes_total // 50 + (64 << 20)
    writer = ImageWriter(folder, gguf.files, most, place.in_place)
    return WeightStore(writer=writer, in_place=place.in_place)


def default_weight_cache() -> Path:
    """Where weights that stay on disk are kept unless a folder is named."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ktransformers" / "weights"


def check_all_used(weights) -> None:
    """Refuses a file with tensors this build does not know: left out, they would change answers."""
    unused = weights.unused()
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise UserError(
            f"{weights.gguf.path}: tensor {unused[0]}{more}: this build does not know what it is "
            "for, and without it answers would be wrong; use another file of the model"
        )


def model_config(gguf, model_path: str | None = None) -> tuple[Any, dict]:
    """(family, transformers configuration fields) of a file; a folder's config.json wins.

    Raises: UserError for an architecture or model type that is not supported, and for a folder of
    another family than the file. Imports no torch.
    """
    from ktransformers.models.config import read_config
    from ktransformers.models.registry import family_for

    config = read_config(gguf, model_path)
    return family_for(config["model_type"]), config


def usable_threads(cpu_infer: int | None) -> int:
    """Worker threads for a request: None for all usable cores. Raises: UserError below 1."""
    most = _core.cpu_info()["default_threads"]
    if cpu_infer is None:
        return most
    if cpu_infer < 1:
        raise UserError(f"--cpu_infer {cpu_infer}: at least one thread is needed")
    return min(cpu_infer, _core.cpu_info()["cpus"])


def build_on_meta(family, config: dict):
    """transformers' module tree of the family, without memory for its weights."""
    import torch

    from ktransformers.runtime.generation import wrap_class

    cls = family.hf_class()
    fields = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    try:
        hf_config = cls.config_class(**fields)
    except Exception as error:  # transformers validates with exceptions of many kinds
        raise UserError(f"the configuration does not fit a {family.name} model: {error}") from error
    hf_config._attn_implementation = "sdpa"
    hf_config.architectures = [cls.__name__]
    with torch.device("meta"):
        return wrap_class(cls)(hf_config)


def mark_as_placed(model) -> None:
    """Tells transformers' pipelines, where there is a GPU, that the model is not theirs to move."""
    import torch

    if torch.accelerator.is_available():
        model.hf_device_map = {"": "cpu"}


def set_generation_config(model, gguf, model_path: str | None) -> None:
    """Stop ids of the model's own tokenizer, and the sampling its makers recommend, if any."""
    from transformers import GenerationConfig

    from ktransformers.checkpoint.generation_config import read_generation_config

    fields = read_generation_config(gguf, model_path)
    if any(fields.get(name) for name in ("temperature", "top_k", "top_p", "min_p")):
        fields.setdefault("do_sample", True)  # settings of sampling mean nothing without it
    model.generation_config = GenerationConfig(**fields)
