"""Flags about where modules run and with how many experts: the same for chat and server."""

import os
import sys
from typing import Any

from ktransformers.cli.fire_flags import Flag
from ktransformers.errors import UserError

AT_LEAST_ONE = {"check": lambda value: value >= 1, "wants": "at least 1"}
PLACEMENT_FLAGS = [
    Flag("device_map", str, None, "what a rule's devices mean here, as in cuda:0=cpu,cuda:1=cpu"),
    Flag("allow_plugin", str, None, "package with operators of your own that rules name"),
    Flag("experts_per_token", int, None, "fewer than the model's; needs a profile", **AT_LEAST_ONE),
    Flag("experts_profile", str, None, "of `ktransformers calibrate`, with its gate met"),
    Flag(
        "defer_experts",
        int,
        None,
        "a token's least experts on the CPU, added a layer later",
        **AT_LEAST_ONE,
    ),
    Flag(
        "gpu",
        str,
        "auto",
        "off leaves NVIDIA cards alone",
        choices=("auto", "off"),
        has_initial=False,
    ),
]


def check_placement(options: dict[str, Any]) -> None:
    """Reads the rule file and what belongs to it; options["device_map"] becomes a dict. Tells of
    the NVIDIA cards that are here.

    Raises: UserError. Imports torch only where a plugin does.
    """
    if options["allow_plugin"]:
        from ktransformers.cli.plugins import allow_plugins

        allow_plugins([options["allow_plugin"]])
    from ktransformers.optimize.devices import parse_device_map
    from ktransformers.optimize.nvidia import start_lines

    for line in start_lines(options["gpu"]):
        print(line, file=sys.stderr)
    options["device_map"] = parse_device_map([options["device_map"] or ""])
    if rules := options["optimize_config_path"]:
        if not os.path.isfile(rules):
            raise UserError(f"--optimize_config_path {rules}: no such file")
        from ktransformers.optimize.rules import load_rules

        load_rules(rules)


def check_experts(options: dict[str, Any], gguf: Any) -> None:
    """Fewer experts per token only with a profile of this model that says what they cost.

    Raises: UserError.
    """
    experts = options["experts_per_token"]
    if not experts:
        return
    from ktransformers.cli.calibrate import allowed

    if not options["experts_profile"]:
        raise UserError(
            f"--experts_per_token {experts} changes what a model says; give the "
            "--experts_profile in which `ktransformers calibrate` measured by how much"
        )
    allowed(options["experts_profile"], experts, gguf)


def check_memory(options: dict[str, Any], gguf: Any) -> None:
    """Refuses a model that RAM does not hold, before torch is imported. Where cards take a part,
    loading does, by its plan: how large that is hangs on the model's modules.

    Raises: UserError.
    """
    from ktransformers.optimize.gpus import cuda_devices
    from ktransformers.runtime.memory import check_fits
    from ktransformers.runtime.planning import memory_of

    if not options.get("in_place") and not cuda_devices(options["gpu"]):
        check_fits(memory_of(gguf, options), str(gguf.path))


def load_options(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of load_model that these flags give."""
    given = {name: options[name] for name in ("device_map", "experts_per_token", "defer_experts")
             if options.get(name)}  # fmt: skip
    return given | ({"gpu": "off"} if options.get("gpu") == "off" else {})
