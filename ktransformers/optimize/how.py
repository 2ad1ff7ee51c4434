"""What upstream's kwargs ask of an operator, in the words of the plan. No torch.

generate=KLinearMarlin weights=int4g32   upstream's op, and the form the card's matrix has
generate=KLinearFP8 upstream=fp8b128     what upstream's op would keep; here the file's type stays
prefill=cuda:0/KExpertsTorch             where and how prompts above the threshold are computed
out=cuda:1                               where results go
prompts=absorbed | expanded              latent attention over prompts of 128 tokens and more
moves=30:cuda:1                          from that layer on, the hidden states are there
layerwise_prefill=off | 4096             tokens from which a prompt goes layer by layer
"""

from collections.abc import Callable
from typing import Any

from ktransformers.operators.registry import OperatorSpec
from ktransformers.operators.upstream_names import CPU_BACKENDS, OP_WEIGHTS
from ktransformers.optimize.rules import Rule

GROUP, BITS = 64, 4  # upstream's defaults for Marlin
FP8_BLOCK = 128


def quant_of_backend(rule: Rule) -> str | None:
    """The type float weights are loaded as for `backend: AMXInt8` and its like."""
    return CPU_BACKENDS.get(dict(rule.asked).get("backend", ""))


def describe(
    rule: Rule, spec: OperatorSpec, device: str, device_of: Callable[[str], str]
) -> dict[str, Any]:
    """{what: value} for the plan.

    device_of: the device of this machine that one in the file stands for. Where everything is on
    the CPU, what only tells devices apart is left out.
    """
    asked, found = dict(rule.asked), {}
    on_gpu = device.startswith("cuda")
    if op := asked.get("generate_op"):
        found["generate"] = op
        if on_gpu and op in OP_WEIGHTS:
            found["upstream"] = gpu_weights(asked, op)
    prefill = asked.get("prefill_device")
    target = device_of(prefill) if prefill else device
    if target != device or (asked.get("prefill_op") and target != "cpu"):
        found["prefill"] = "/".join(filter(None, (target, asked.get("prefill_op"))))
    if out := asked.get("out_device"):
        out = device_of(out)
        if out != "cpu" or on_gpu:
            found["out"] = out
    if backend := asked.get("backend"):
        weights = CPU_BACKENDS[backend]
        found["floats"] = f"{backend}:{weights or 'as stored'}"
    if "absorb_for_prefill" in asked:
        found["prompts"] = "absorbed" if asked["absorb_for_prefill"] else "expanded"
    if "chunck_size" in asked:
        found["chunk"] = asked["chunck_size"]
    if moves := asked.get("transfer_map"):
        found["moves"] = ",".join(f"{layer}:{device_of(to)}" for layer, to in moves)
    if (limit := asked.get("per_layer_prefill_intput_threshold")) is not None:
        found["layerwise_prefill"] = limit or "off"
    return found


def gpu_weights(asked: dict[str, Any], op: str) -> str:
    """How upstream's op keeps weights on a GPU."""
    kind = OP_WEIGHTS[op]
    if kind == "fp8":
        block = asked.get("block_size") or FP8_BLOCK
        return f"fp8b{block}"
    if kind == "q8_0":
        return kind
    bits, group = asked.get("num_bits") or BITS, asked.get("group_size") or GROUP
    return f"int{bits}g{group}"
