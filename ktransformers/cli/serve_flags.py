"""The flags of the server and all that can be said against them before torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktransformers.cli.chat_flags import FLAGS as CHAT_FLAGS
from ktransformers.cli.chat_flags import at_least, gpu_flag_notes, note, sampling_of, within
from ktransformers.cli.fire_flags import Flag, Parser
from ktransformers.cli.placement_flags import (
    PLACEMENT_FLAGS,
    check_experts,
    check_memory,
    check_placement,
)
from ktransformers.errors import UserError
from ktransformers.optimize.cache_types import checked_kv_type

USAGE = "usage: ktransformers serve --gguf_path FILE [--flag value ...]"
CHAT = {flag.name: flag for flag in CHAT_FLAGS}

FLAGS = [
    Flag("gguf_path", str, None, CHAT["gguf_path"].help),
    Flag("model_path", str, None, CHAT["model_path"].help, aliases=("model_dir",)),
    CHAT["optimize_config_path"],
    Flag("host", str, "127.0.0.1", "address to listen on; 0.0.0.0 for all, with --api_key"),
    Flag("port", int, 10002, "port to listen on; 0 takes a free one", **within(0, 65535)),
    Flag("api_key", str, None, "key every request must carry; or the variable KT_API_KEY"),
    Flag("allowed_hosts", str, "", "more names this server is reached by, with commas between"),
    Flag("ssl_keyfile", str, None, "private key for HTTPS"),
    Flag("ssl_certfile", str, None, "certificate for HTTPS"),
    Flag("model_name", str, None, "name clients see; else the file's own"),
    CHAT["cpu_infer"],
    Flag("cache_lens", int, 16384, "tokens in the cache, over all requests",
         aliases=("total_context",), **at_least(128)),
    Flag("context_length", int, None, "tokens one request may have; else what the model was made "
         "for, if the cache holds it", **at_least(2)),
    CHAT["chunk_size"],
    Flag("kv_type", str, None, "cache type: i16, f16, bf16, f32, q8_0, f16+q8_0; on GPUs: fp8"),
    Flag("max_batch_size", int, 8, "requests answered at the same time", **within(1, 256)),
    Flag("max_queue", int, 64, "requests that may wait", **within(0, 100000)),
    Flag("max_new_tokens", int, None, "longest answer; else all the context has", **at_least(1)),
    Flag("prefix_cache", bool, True, "keep what prompts have in common"),
    Flag("force_think", bool, False, "begin every answer inside of thinking"),
    *(CHAT[name] for name in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty",
                              "presence_penalty", "frequency_penalty", "seed")),
    Flag("activations", str, "auto", CHAT["activations"].help, choices=("auto", "exact", "f32")),
    Flag("deterministic", bool, False, "a seed gives the same answer whoever else is served"),
    Flag("web", bool, True, "serve the chat page"),
    Flag("log_level", str, "info", "what is logged",
         choices=("debug", "info", "warning", "error", "critical")),
    CHAT["use_cuda_graph"],
    CHAT["device"],
    *PLACEMENT_FLAGS,
]  # fmt: skip

# Upstream's other flags: scripts have them, and nothing here depends on them. Each is said once.
IGNORED = """
architectures backend_type balance_serve page_size sched_strategy memory_gpu_only
utilization_percentage cpu_memory_size_GB kvc2_config_dir log_dir log_file db_type db_database
db_host db_name db_pool_size prompt_file json_mode healing ban_strings gpu_split length rope_scale
rope_alpha no_flash_attn low_mem load_q4 fast_safetensors draft_model_dir
no_draft_scale modes mode username botname system_prompt smoothing_factor dynamic_temperature top_a
skew typical repetition_penalty repetition_decay response_chunk no_code_formatting cache_8bit
cache_q4 ngram_decoding print_timings amnesia batch_size user_config user_force_new user_path
file_upload_dir assistant_store_dir type max_response_tokens paged cache_q8 unicode gpu_memory_size
attn_page_size attn_chunk_size user_algorithm user_secret_key draft_rope_alpha
""".split()
PARSER = Parser(
    FLAGS + [Flag(name, str, None, "") for name in IGNORED if name not in {f.name for f in FLAGS}]
)
HELP = Parser(FLAGS)
BARE_SWITCHES = {"no_flash_attn", "low_mem", "json_mode", "healing", "amnesia", "memory_gpu_only"}


@dataclass
class ServeRequest:
    """What the command line asked for, checked. gguf: the opened model; sampling: arguments of
    SamplingOptions; api_keys, hosts: of the gate."""

    options: dict[str, Any]
    gguf: Any
    sampling: dict[str, Any]
    api_keys: tuple[str, ...]
    hosts: tuple[str, ...]
    model_name: str


def with_values(words: list[str]) -> list[str]:
    """Ignored switches that stand alone get a value, so that the parser reads on."""
    made = []
    for index, word in enumerate(words):
        made.append(word)
        name = word.lstrip("-").replace("-", "_")
        last = index + 1 == len(words) or words[index + 1].startswith("-")
        if word.startswith("-") and name in IGNORED and last:
            made.append("True")
    return made


def check_serve(words: list[str]) -> ServeRequest:
    """Reads and checks a command line. Raises UserError, or what open_model raises."""
    options, given = PARSER.parse(with_values(list(words)))
    for name in sorted(given & set(IGNORED)):
        note(f"--{name}: means nothing to this server")
    for line in gpu_flag_notes(options, given):
        note(line)
    if options["deterministic"] and options["activations"] == "auto":
        options["activations"] = "exact"
    check_files(options)
    checked_kv_type(options["kv_type"])
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.checkpoint.hub import resolve_config, resolve_model
    from ktransformers.runtime.loading import model_config, usable_threads

    if not options["gguf_path"]:
        raise UserError("--gguf_path is missing: name the model's GGUF file or folder")
    usable_threads(options["cpu_infer"])
    options["gguf_path"] = str(resolve_model(options["gguf_path"]))
    gguf = open_model(options["gguf_path"])
    check_experts(options, gguf)
    if options["model_path"]:
        options["model_path"] = str(resolve_config(options["model_path"]))
    model_config(gguf, options["model_path"])
    check_memory(options, gguf)
    sampling = sampling_of({**options, "max_new_tokens": None}, gguf)
    key = options.pop("api_key") or os.environ.get("KT_API_KEY")
    if not key and options["host"] not in ("127.0.0.1", "localhost", "::1"):
        note(f"--host {options['host']} without --api_key: everybody who reaches it may use it")
    hosts = tuple(h.strip() for h in options["allowed_hosts"].split(",") if h.strip())
    name = options["model_name"] or own_name(gguf)
    return ServeRequest(options, gguf, sampling, (key,) if key else (), hosts, name)


def check_files(options: dict[str, Any]) -> None:
    """Raises: UserError for named files that are not there."""
    for name in ("ssl_keyfile", "ssl_certfile", "optimize_config_path"):
        if options[name] and not os.path.isfile(options[name]):
            raise UserError(f"--{name} {options[name]}: no such file")
    if bool(options["ssl_keyfile"]) != bool(options["ssl_certfile"]):
        raise UserError("--ssl_keyfile and --ssl_certfile: HTTPS needs both")
    if options["experts_per_token"] and not options["experts_profile"]:
        note("--experts_per_token: means nothing without --experts_profile")  # upstream's scripts
        options["experts_per_token"] = None
    check_placement(options)
    if options["model_path"] and os.path.sep in options["model_path"]:
        if not os.path.isdir(options["model_path"]) and options["model_path"].count("/") != 1:
            raise UserError(f"--model_path {options['model_path']}: no such folder")


def own_name(gguf: Any) -> str:
    """The model's name for clients: that of its file."""
    return Path(str(gguf.path)).name.removesuffix(".gguf")[:200] or "model"
