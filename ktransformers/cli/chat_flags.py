"""The flags of the chat and all that can be said against them before torch is imported."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktransformers.cli.fire_flags import Flag, Parser
from ktransformers.cli.placement_flags import (
    PLACEMENT_FLAGS,
    check_experts,
    check_memory,
    check_placement,
)
from ktransformers.errors import UserError

USAGE = "usage: python -m ktransformers.local_chat --gguf_path FILE [--flag value ...]"


def at_least(least: float) -> dict[str, Any]:
    return {"check": lambda value: value >= least, "wants": f"at least {least:g}"}


def within(low: float, high: float) -> dict[str, Any]:
    return {"check": lambda value: low <= value <= high, "wants": f"from {low:g} to {high:g}"}


def above(low: float, high: float) -> dict[str, Any]:
    return {"check": lambda value: low < value <= high, "wants": f"above {low:g}, up to {high:g}"}


# The order is upstream's, because bare words fill the flags in it; our own follow.
FLAGS = [
    Flag("model_path", str, None, "folder with config and tokenizer; without it the GGUF's"),
    Flag(
        "optimize_config_path", str, None, "rule file; without it the family's own",
        aliases=("optimize_rule_path",),
    ),
    Flag("gguf_path", str, None, "GGUF file, folder of one model's files, or user/repo:quant"),
    Flag("max_new_tokens", int, 1000, "longest answer, in tokens", **at_least(1)),
    Flag("cpu_infer", int, None, "threads; without it all usable physical cores", **at_least(1)),
    Flag("use_cuda_graph", bool, True, "read for old scripts; a card's steps are graphs"),
    Flag("prompt_file", str, None, "UTF-8 text that an empty line sends"),
    Flag("mode", str, "normal", "kept for old scripts", choices=("normal", "long_context")),
    Flag("force_think", bool, False, "begin every answer with <think>"),
    Flag("chunk_size", int, None, "prompt tokens evaluated at a time", **at_least(1)),
    Flag("device", str, "cpu", "read for old scripts; rules and --gpu say it"),
    Flag("cache_lens", int, None, "tokens a conversation may have", **at_least(2)),
    Flag("temperature", float, None, "0 always takes the likeliest token", **within(0, 100)),
    Flag("top_p", float, None, "likeliest tokens up to this probability", **above(0, 1)),
    Flag("top_k", int, None, "this many likeliest tokens; 0 for all", **at_least(0)),
    Flag("min_p", float, None, "least probability, as a part of the likeliest's", **within(0, 1)),
    Flag("repeat_penalty", float, None, "above 1 avoids repetition", **above(0, 100)),
    Flag("presence_penalty", float, None, "taken off tokens that occurred", **within(-100, 100)),
    Flag("frequency_penalty", float, None, "taken off per occurrence", **within(-100, 100)),
    Flag("seed", int, None, "makes sampling repeatable", **within(0, 2**63 - 1)),
    Flag(
        "activations", str, "auto", "rounding of activations (exact: near none, f32: none)",
        choices=("auto", "exact", "f32"),
    ),
    Flag("prompt", str, None, "answer this once and end"),
    *PLACEMENT_FLAGS,
    Flag("weight_cache", str, None, "folder that keeps repacked weights for the next start"),
    Flag("in_place", bool, False, "leave weights on disk: for models larger than memory"),
    Flag("dry_run", bool, False, "print what memory the model needs, and end"),
]  # fmt: skip
PARSER = Parser(FLAGS)

# What old scripts say of GPUs: read, and answered with what holds here.
GPU_FLAGS = ("use_cuda_graph", "device")


@dataclass
class Request:
    """What the command line asked for, checked.

    gguf: the opened model; sampling: arguments of SamplingOptions; prompt_text: what --prompt_file
    holds.
    """

    options: dict[str, Any]
    gguf: Any
    sampling: dict[str, Any]
    prompt_text: str | None


def note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def gpu_flag_notes(options: dict[str, Any], given: set[str]) -> list[str]:
    """A line for each of GPU_FLAGS that was given and does not do what it says."""
    from ktransformers.optimize.gpus import cuda_devices

    asked = [(name, options[name]) for name in GPU_FLAGS if name in given]
    cards = cuda_devices(options["gpu"]) if asked else 0
    lines = []
    for name, value in asked:
        if not cards and value not in ("cpu", False):
            lines.append(f"--{name} {value}: no card is in use here, the CPU computes")
        elif cards and name == "device":
            lines.append(
                f"--device {value}: not used; rules, or the planner where there are none, say what "
                "a card computes, and --gpu off leaves cards alone"
            )
        elif cards and not value:
            lines.append(f"--{name} {value}: not used; a card's decode steps are graphs")
    return lines


def read_prompt_file(path: str) -> str:
    """The file's text. Raises UserError with the place of the first byte that is not UTF-8."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--prompt_file {path}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"--prompt_file {path}:{line}: byte 0x{data[error.start]:02x} at offset {error.start} "
            "is not UTF-8; convert the file, e.g. with iconv"
        ) from None


def ask_for_gguf_path() -> str:
    if not sys.stdin.isatty():
        raise UserError("--gguf_path is missing: name the model's GGUF file or folder")
    try:
        return input("GGUF file or folder of the model: ").strip()
    except EOFError:
        raise UserError("--gguf_path is missing: name the model's GGUF file or folder") from None


def check_request(words: list[str]) -> Request:
    """Reads and checks a command line. Raises UserError, or what open_model and load_rules raise.

    Imports neither torch nor transformers, so that a typing error costs no seconds.
    """
    options, given = PARSER.parse(words)
    from ktransformers import _core

    cores = _core.cpu_info()["default_threads"]
    if options["cpu_infer"] is not None and options["cpu_infer"] > cores:
        note(f"--cpu_infer {options['cpu_infer']}: using {cores}, all cores this process may use")
        options["cpu_infer"] = cores
    for line in gpu_flag_notes(options, given):
        note(line)
    prompt_text = read_prompt_file(options["prompt_file"]) if options["prompt_file"] else None
    check_placement(options)
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.checkpoint.hub import resolve_config, resolve_model
    from ktransformers.runtime.loading import model_config

    options["gguf_path"] = str(resolve_model(options["gguf_path"] or ask_for_gguf_path()))
    gguf = open_model(options["gguf_path"])
    check_experts(options, gguf)
    if folder := options["model_path"]:
        options["model_path"] = str(resolve_config(folder))
        if not os.path.isdir(options["model_path"]):
            raise UserError(
                f"--model_path {folder}: no such folder; it holds config.json and the tokenizer's "
                "files (without the flag the GGUF's own are used)"
            )
    model_config(gguf, options["model_path"])
    if not options["dry_run"]:
        check_memory(options, gguf)
    return Request(options, gguf, sampling_of(options, gguf), prompt_text)


SAMPLING_FLAGS = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "seed", "max_new_tokens",
)  # fmt: skip


def sampling_of(options: dict[str, Any], gguf: Any) -> dict[str, Any]:
    """Arguments of SamplingOptions: the flags; where they are silent what the model's makers
    recommend; where they are too, upstream's 0.6 and 0.95. Raises UserError."""
    from ktransformers.checkpoint.generation_config import read_generation_config

    config = read_generation_config(gguf, options["model_path"])
    config["repeat_penalty"] = config.pop("repetition_penalty", None)
    values = {name: config[name] for name in SAMPLING_FLAGS if config.get(name) is not None}
    if config.get("do_sample") is False:
        values = {"temperature": 0.0}
    values = values or {"temperature": 0.6, "top_p": 0.95}
    values |= {name: options[name] for name in SAMPLING_FLAGS if options[name] is not None}
    return values | {"stop_ids": tuple(config["eos_token_id"])}
