"""The commands of `ktransformers` as typer reads them; what each does is in a file of its own."""

from typing import Annotated

import typer

from ktransformers.cli import main as entry

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Very large Mixture-of-Experts language models on one ordinary machine.",
)
ANY_WORDS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=ANY_WORDS)
def chat(context: typer.Context) -> None:
    """Talk to a model in the terminal: chat --gguf_path FILE (flags: chat --help)."""
    from ktransformers.local_chat import main

    raise typer.Exit(main(context.args))


@app.command(context_settings=ANY_WORDS)
def serve(context: typer.Context) -> None:
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
    preset: str = typer.Argument("Q4_K_M", help="Q4_K_M, Q6_K, Q8_0, IQ4_XS, BF16 or F16"),
    tensor: TensorTypes = (),
    recipe: str = typer.Option(None, "--recipe", help="YAML list of {tensor: REGEX, type: TYPE}"),
    threads: int = typer.Option(0, "--threads", min=0, help="0: all usable cores"),
    dry_run: bool = typer.Option(False, "--dry-run", help="only print what would be written"),
) -> None:
    """Write a model as a GGUF file with smaller weights; run again to go on after a stop."""
    from ktransformers.cli.quantize import run

    run(source, out, preset, tensor, recipe, threads, dry_run)


def spelled(name: str, text: str):
    """An option in upstream's spelling and with dashes."""
    return typer.Option(f"--{name}", f"--{name.replace('_', '-')}", help=text)


GgufPath = Annotated[str, spelled("gguf_path", "GGUF file, folder or user/repo:quant")]
RulePath = Annotated[str, spelled("optimize_config_path", "rule file; else the family's own")]
ModelPath = Annotated[str, spelled("model_path", "folder with config; else the GGUF's is used")]
DeviceMap = Annotated[list[str], spelled("device_map", "a rule's device, as in cuda:0=cpu")]


@app.command()
def plan(
    gguf_path: Annotated[str, spelled("gguf_path", "GGUF file, folder or user/repo:quant")] = None,
    optimize_config_path: RulePath = None,
    model_path: ModelPath = None,
    device_map: DeviceMap = (),
    json: bool = typer.Option(False, "--json", help="everything, as one JSON document"),
    every_layer: bool = typer.Option(False, "--all", help="one line per module, none summed up"),
    fit: bool = typer.Option(False, "--fit", help="place by a machine's limits; predict speed"),
    machine: str = typer.Option(None, "--machine", help="a described machine (YAML); else this"),
    known: str = typer.Option(None, "--known", help="a published model, as in DeepSeek-V3:Q4_K_M"),
    context: int = typer.Option(8192, "--context", min=1, help="positions the cache holds"),
    prompt: int = typer.Option(2048, "--prompt", min=1, help="tokens of the prompts predicted"),
    write: str = typer.Option(None, "--write", help="write the fit as a rule file"),
    threads: int = typer.Option(None, "--threads", min=1, help="of this machine"),
    suggest: bool = typer.Option(False, "--suggest", help="known models that fit the machine"),
) -> None:
    """Print which operator each module of a model gets, where, and why, without loading it."""
    from ktransformers.checkpoint.hub import resolve_model
    from ktransformers.cli import fit_command
    from ktransformers.cli.plan_command import run

    if suggest:
        return fit_command.suggest(machine, context, threads)
    path = str(resolve_model(gguf_path)) if gguf_path else None
    if fit or machine or known or write:
        return fit_command.run(
            path, known, machine, context, prompt, optimize_config_path, write, threads, json
        )
    if path is None:
        raise typer.BadParameter("--gguf_path is missing: name the model's GGUF file or folder")
    run(path, optimize_config_path, model_path, device_map or (), json, every_layer)


@app.command()
def doctor() -> None:
    """Look at this machine and installation, and say what to do."""
    from ktransformers.cli.doctor import main

    raise typer.Exit(main())


@app.command()
def version() -> None:
    """Print the version."""
    entry.show_version()
