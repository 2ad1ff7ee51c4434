"""Commands that look at rules and models and change neither: rules check, compare, calibrate."""

import typer

from ktransformers.cli.options import AllowPlugin, DeviceMap, GgufPath

rules_app = typer.Typer(no_args_is_help=True, help="Look at rule files.")


@rules_app.command("check")
def rules_check(
    path: str = typer.Argument(help="rule file"),
    model: str = typer.Option(..., "--model", help="GGUF, folder, or a known model's name"),
    device_map: DeviceMap = (),
    gpus: int = typer.Option(0, "--gpus", min=0, max=64, help="GPUs of the machine it is for"),
    allow_plugin: AllowPlugin = (),
) -> None:
    """Print which rule takes what, which takes nothing and why; status 1 if one takes nothing."""
    from ktransformers.cli.plugins import allow_plugins
    from ktransformers.cli.rules_command import check

    allow_plugins(allow_plugin or ())
    raise typer.Exit(check(path, model, device_map or (), gpus))


@rules_app.callback()
def rules_group() -> None:
    """Look at rule files."""  # with a callback, `rules check` keeps its second word


def compare(
    rules_a: str = typer.Argument(help="rule file"),
    rules_b: str = typer.Argument(help="rule file to compare with it"),
    gguf_path: GgufPath = ...,
    text: str = typer.Option(None, "--text", help="text for KL; else a built-in one"),
    tokens: int = typer.Option(256, "--tokens", min=8, max=4096, help="of the text"),
    new_tokens: int = typer.Option(48, "--new_tokens", min=1, help="per prompt"),
    json: bool = typer.Option(False, "--json", help="everything, as one JSON document"),
) -> None:
    """Run a model under two rule files: speed, memory, KL, first difference."""
    from ktransformers.checkpoint.hub import resolve_model
    from ktransformers.cli.compare import run

    run(str(resolve_model(gguf_path)), rules_a, rules_b, text, tokens, new_tokens, json)


def calibrate(
    out: str = typer.Argument(help="the profile to write (JSON)"),
    gguf_path: GgufPath = ...,
    text: str = typer.Option(..., "--text", help="UTF-8 text like that the model will see"),
    experts_per_token: int = typer.Option(None, "--experts-per-token", min=1, help="to try"),
    max_kl: float = typer.Option(None, "--max-kl", min=0, help="gate: mean KL that is allowed"),
    tokens: int = typer.Option(2048, "--tokens", min=64, help="of the text"),
) -> None:
    """Measure which experts matter on a text, and what fewer per token would cost."""
    from ktransformers.checkpoint.hub import resolve_model
    from ktransformers.cli.calibrate import run

    run(str(resolve_model(gguf_path)), text, out, experts_per_token, max_kl, tokens)


def add_looking(app: typer.Typer) -> None:
    """Adds the commands to the program's."""
    app.add_typer(rules_app, name="rules")
    app.command()(compare)
    app.command()(calibrate)
