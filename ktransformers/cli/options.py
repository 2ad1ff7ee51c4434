"""Options that several commands have, as typer reads them."""

from typing import Annotated

import typer


def spelled(name: str, text: str):
    """An option in upstream's spelling and with dashes."""
    return typer.Option(f"--{name}", f"--{name.replace('_', '-')}", help=text)


GgufPath = Annotated[str, spelled("gguf_path", "GGUF file, folder or user/repo:quant")]
RulePath = Annotated[str, spelled("optimize_config_path", "rule file; else the family's own")]
ModelPath = Annotated[str, spelled("model_path", "folder with config; else the GGUF's is used")]
AllowPlugin = Annotated[list[str], spelled("allow_plugin", "package of operators rules may name")]
DeviceMap = Annotated[list[str], spelled("device_map", "a rule's device, as in cuda:0=cpu")]
