"""The commands of `ktransformers` as typer reads them; what each does is in a file of its own."""

import inspect as signatures
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from ktransformers.cli import main as entry
from ktransformers.cli.chat_flags import FLAGS as CHAT_FLAGS
from ktransformers.cli.looking_commands import add_looking
from ktransformers.cli.options import AllowPlugin, DeviceMap, ModelPath, RulePath, spelled
from ktransformers.cli.serve_flags import FLAGS as SERVE_FLAGS

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Very large Mixture-of-Experts language models on one ordinary machine.",
)
ANY_WORDS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def flagged(flags: Sequence) -> Callable:
    """Tells typer a command's flags, so that a shell completes them. Only a shell's question comes
    here: main hands the words of such commands to their own parser."""

    def known(context: typer.Context, incomplete: str, choices: Sequence[str]) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    def option(flag) -> signatures.Parameter:
        choices = ("True", "False") if flag.kind is bool else flag.choices
        complete = (lambda ctx, incomplete: known(ctx, incomplete, choices)) if choices else None
        default = typer.Option(None, f"--{flag.name}", help=flag.help, autocompletion=complete)
        place = signatures.Parameter.KEYWORD_ONLY
        return signatures.Parameter(flag.name, place, default=default, annotation=str)

    def decorate(command: Callable) -> Callable:
        own = [p for p in signatures.signature(command).parameters.values() if p.name != "flags"]
        more = [option(flag) for flag in flags]
        command.__signature__ = signatures.Signature([*own, *more])
        command.__annotations__ |= {parameter.name: str for parameter in more}
        return command

    return decorate


@app.command(context_settings=ANY_WORDS)
@flagged(CHAT_FLAGS)
def chat(context: typer.Context, **flags) -> None:
    """Talk to a model in the terminal: chat --gguf_path FILE (flags: chat --help)."""
    from ktransformers.local_chat import main

    raise typer.Exit(main(context.args))


@app.command(context_settings=ANY_WORDS)
@flagged(SERVE_FLAGS)
def serve(context: typer.Context, **flags) -> None:
    """Serve a model over HTTP: serve --gguf_path FILE (flags: serve --help)."""
    from ktransformers.cli.serve import main

    raise typer.Exit(main(context.args))


@app.command()
def run(
    model: str = typer.Argument(help="GGUF file, folder of one model's files, or user/repo:quant"),
    prompt: str = typer.Argument("", help="answered once; without it a chat opens"),
) -> None:
    """Answer one prompt with a model, or chat with it."""
    from ktransformers.local_chat import main

    raise typer.Exit(main(["--gguf_path", model, *([f"--prompt={prompt}"] if prompt else [])]))


@app.command()
def inspect(
    model: str = typer.Argument(help="GGUF file, or folder of one model's files"),
    tensors: bool = typer.Option(False, "--tensors", help="list every tensor"),
    json: bool = typer.Option(False, "--json", help="everything, as one JSON document"),
) -> None:
    """Print a model file's metadata, types and sizes."""
    from ktransformers.cli.inspect import run

    run(model, tensors, json)


TensorTypes = Annotated[
    list[str], typer.Option("--tensor", help="REGEX=TYPE for single tensors, as often as needed")
]


@app.command()
def quantize(
    source: str = typer.Argument(help="Hugging Face folder or GGUF file"),
    out: str = typer.Argument(help="the GGUF file to write"),
    preset: str = typer.Argument(
        None,
        help="Q4_K_M, Q6_K, Q8_0, IQ4_XS, BF16, F16, or KEEP: int4 codes as they are; default: "
        "KEEP for folders that have such, else Q4_K_M",
    ),
    tensor: TensorTypes = (),
    recipe: str = typer.Option(None, "--recipe", help="YAML list of {tensor: REGEX, type: TYPE}"),
    threads: int = typer.Option(0, "--threads", min=0, help="0: all usable cores"),
    dry_run: bool = typer.Option(False, "--dry-run", help="only print what would be written"),
) -> None:
    """Write a model as a GGUF file with smaller weights; run again to go on after a stop."""
    from ktransformers.cli.quantize import run

    run(source, out, preset, tensor, recipe, threads, dry_run)


@app.command()
def plan(
    gguf_path: Annotated[str, spelled("gguf_path", "GGUF file, folder or user/repo:quant")] = None,
    optimize_config_path: RulePath = None,
    model_path: ModelPath = None,
    device_map: DeviceMap = (),
    json: bool = typer.Option(False, "--json", help="everything, as one JSON document"),
    every_layer: bool = typer.Option(False, "--all", help="one line per module, none summed up"),
    fit: bool = typer.Option(
        None, "--fit/--no-fit", help="place by limits, predict speed; on unless rules are given"
    ),
    machine: str = typer.Option(None, "--machine", help="a described machine (YAML); else this"),
    known: str = typer.Option(None, "--known", help="a published model, as in DeepSeek-V3:Q4_K_M"),
    context: int = typer.Option(8192, "--context", min=1, help="positions the cache holds"),
    kv_type: Annotated[str, spelled("kv_type", "fp8: a smaller cache on GPUs")] = None,
    prompt: int = typer.Option(2048, "--prompt", min=1, help="tokens of the prompts predicted"),
    write: str = typer.Option(None, "--write", help="write the fit as a rule file"),
    threads: int = typer.Option(None, "--threads", min=1, help="of this machine"),
    suggest: bool = typer.Option(False, "--suggest", help="known models that fit the machine"),
    experts_profile: str = typer.Option(None, "--experts-profile", help="which experts are hot"),
    allow_plugin: AllowPlugin = (),
) -> None:
    """Print which operator each module of a model gets, where, and why, without loading it."""
    from ktransformers.checkpoint.hub import resolve_model
    from ktransformers.cli import fit_command
    from ktransformers.cli.plan_command import run
    from ktransformers.cli.plugins import allow_plugins

    allow_plugins(allow_plugin or ())
    if suggest:
        return fit_command.suggest(machine, context, threads, kv_type)
    path = str(resolve_model(gguf_path)) if gguf_path else None
    if fit or machine or known or write or experts_profile:
        return fit_command.run(
            path,
            known,
            machine,
            context,
            prompt,
            optimize_config_path,
            write,
            threads,
            json,
            experts_profile,
            kv_type,
        )
    if path is None:
        raise typer.BadParameter("--gguf_path is missing: name the model's GGUF file or folder")
    fitting = {"prompt": prompt, "threads": threads, "kv_type": kv_type}
    if fit is None and optimize_config_path is None:
        fitting["context"] = context
    run(path, optimize_config_path, model_path, device_map or (), json, every_layer, **fitting)


bench = typer.Typer(no_args_is_help=True, help="Measure speed.", pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")


@bench.command("serve")
def bench_serve(
    gguf_path: Annotated[str, spelled("gguf_path", "model to start a server for")] = None,
    url: str = typer.Option(None, help="a server that runs, e.g. http://127.0.0.1:10002"),
    peer: Annotated[list[str], typer.Option(help="NAME=URL of another server")] = (),
    api_key: Annotated[str, spelled("api_key", "key of the server at --url")] = None,
    users: int = typer.Option(5, min=1, help="users answered at a time"),
    rate: float = typer.Option(1.0, min=0.01, help="requests a second"),
    requests: int = typer.Option(50, min=1, help="requests in all"),
    streams: int = typer.Option(8, min=1, help="streams that run at once"),
    prompt_tokens: Annotated[int, spelled("prompt_tokens", "length of prompts")] = 128,
    max_tokens: Annotated[int, spelled("max_tokens", "length of answers")] = 64,
    shared_tokens: Annotated[int, spelled("shared_tokens", "length of a shared prompt")] = 2000,
    long_tokens: Annotated[int, spelled("long_tokens", "length of a long prompt")] = 8000,
    long_answers: Annotated[int, spelled("long_answers", "tokens generated beside it")] = 2000,
    parts: str = typer.Option("one,streams,users,prefix,long", help="which figures"),
    cpu_infer: Annotated[int, spelled("cpu_infer", "threads; else all usable cores")] = None,
    local: bool = typer.Option(True, help="compare one stream with the chat's own loop"),
    json: str = typer.Option(None, help="file the figures are written to"),
    png: str = typer.Option(None, help="file of a plot"),
) -> None:
    """Measure a server: one user, several users, shared prompts, a long prompt beside others."""
    from ktransformers.cli.bench_serve import run

    names = ("users", "rate", "requests", "streams", "prompt_tokens", "max_tokens",
             "shared_tokens", "long_tokens", "long_answers")  # fmt: skip
    given = locals()
    options = {name: given[name] for name in names}
    options |= {"parts": parts.split(","), "compare_local": local, "load": {"cpu_infer": cpu_infer}}
    words = ["--max_batch_size", str(max(streams, 8)), "--cache_lens", "32768"]
    words += ["--cpu_infer", str(cpu_infer)] if cpu_infer else []
    run(gguf_path, url, list(peer or ()), options, words, json, png, api_key)


@app.command()
def doctor() -> None:
    """Look at this machine and installation, and say what to do."""
    from ktransformers.cli.doctor import main

    raise typer.Exit(main())


@app.command()
def version() -> None:
    """Print the version."""
    entry.show_version()


add_looking(app)
