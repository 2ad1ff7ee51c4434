"""Slice every FFN of a dense llama GGUF into equal experts: a real MoE with known answers.

    python -m ktransformers.util.slice_moe IN.gguf OUT.gguf [--experts 8]

A SwiGLU FFN of width I is a sum over its I intermediate rows, so it is also the sum of E narrower
FFNs of width I / E. With a zero router and top-E of E, every expert gets the weight 1 / E; `down`
is multiplied by E to make up for that. The logits are those of the dense model up to the order of
float additions, while tokens go through router, expert table and weighted sum.

Nothing is requantised. gate and up are cut between rows, which leaves their bytes in place; down
is cut between blocks of its rows; and E is a power of two, so that multiplying the binary16 block
scales by E is exact. Where a scale of down would overflow, `up` of that layer takes the factor.

The result is a llama MoE as llama.cpp writes Mixtral: ffn_{gate,up,down}_exps of [E, out, in],
ffn_gate_inp (F32), llama.expert_count, llama.expert_used_count, and llama.feed_forward_length of
one expert. Imports no torch.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint.gguf import GGUFFile, open_model
from ktransformers.errors import UserError


@dataclass(frozen=True)
class Scaling:
    """Where the numbers stand that a block's values are proportional to (offsets in bytes)."""

    values: int
    bytes: int
    scales: tuple[int, ...]
    dtype: str = "<f2"


PARTS = ("gate", "up", "down")

# A block's values are linear in exactly these numbers, in every format listed.
SCALINGS = {
    "f32": Scaling(1, 4, (0,), "<f4"),
    "f16": Scaling(1, 2, (0,)),
    "q4_0": Scaling(32, 18, (0,)),
    "q4_1": Scaling(32, 20, (0, 2)),
    "q5_0": Scaling(32, 22, (0,)),
    "q5_1": Scaling(32, 24, (0, 2)),
    "q8_0": Scaling(32, 34, (0,)),
    "q2_k": Scaling(256, 84, (80, 82)),
    "q3_k": Scaling(256, 110, (108,)),
    "q4_k": Scaling(256, 144, (0, 2)),
    "q5_k": Scaling(256, 176, (0, 2)),
    "q6_k": Scaling(256, 210, (208,)),
    "iq4_nl": Scaling(32, 18, (0,)),
    "iq4_xs": Scaling(256, 136, (0,)),
}


def multiply(blocks: np.ndarray, scaling: Scaling, factor: int) -> np.ndarray | None:
    """Multiplies the values of quantised blocks by a power of two, exactly.

    Shapes: blocks: [..., n * scaling.bytes] uint8, whole blocks along the last axis.
    Returns a copy, or None where a scale would overflow.
    """
    out = blocks.reshape(-1, scaling.bytes).copy()
    width = np.dtype(scaling.dtype).itemsize
    for at in scaling.scales:
        part = np.ascontiguousarray(out[:, at : at + width])
        with np.errstate(over="ignore"):
            part = part.view(scaling.dtype) * np.dtype(scaling.dtype).type(factor)
        if not np.isfinite(part).all():
            return None
        out[:, at : at + width] = part.view(np.uint8)
    return out.reshape(blocks.shape)


def split_columns(rows: np.ndarray, experts: int) -> np.ndarray:
    """[out, row_bytes] -> [experts, out, row_bytes / experts]: expert e gets the e-th columns."""
    out, row_bytes = rows.shape
    parts = rows.reshape(out, experts, row_bytes // experts)
    return np.ascontiguousarray(parts.transpose(1, 0, 2))


def layer_tensors(model: GGUFFile, layer: int, experts: int) -> dict[str, tuple]:
    """{name: (type, shape)} of the MoE tensors that replace a layer's FFN, in the order of
    `layer_bytes`. Raises: UserError for a layer that cannot be cut."""
    gate, up, down = (model.tensor(f"blk.{layer}.ffn_{part}.weight") for part in PARTS)
    for info in (up, down):
        if info.type not in SCALINGS:
            raise UserError(
                f"{model.path}: tensor {info.name} has type {info.type}; can slice "
                + ", ".join(SCALINGS)
            )
    hidden, width = down.shape
    block = SCALINGS[down.type].values
    if width % (experts * block):
        raise UserError(
            f"{model.path}: tensor {down.name} has {width} columns of type {down.type};"
            f" {experts} experts need a multiple of {experts * block}"
        )
    for info in (gate, up):
        if info.shape != (width, hidden):
            raise UserError(
                f"{model.path}: tensor {info.name} has shape {info.shape},"
                f" {down.name} asks for {(width, hidden)}"
            )
    tensors = {f"blk.{layer}.ffn_gate_inp.weight": ("f32", (experts, hidden))}
    for info, part in zip((gate, up, down), PARTS, strict=True):
        rows, columns = (hidden, width // experts) if part == "down" else (width // experts, hidden)
        tensors[f"blk.{layer}.ffn_{part}_exps.weight"] = (info.type, (experts, rows, columns))
    return tensors


def layer_bytes(model: GGUFFile, layer: int, experts: int) -> list[np.ndarray]:
    """The bytes of `layer_tensors`. Raises: UserError where a scale of both `down` and `up` would
    overflow."""
    names = [f"blk.{layer}.ffn_{part}.weight" for part in PARTS]
    gate, up, down = (model.data(name) for name in names)
    up_type, down_type = (model.tensor(name).type for name in names[1:])
    hidden = model.tensor(names[2]).shape[0]
    scaled = multiply(down, SCALINGS[down_type], experts)
    if scaled is None:
        scaled = down
        up = multiply(up, SCALINGS[up_type], experts)
        if up is None:
            raise UserError(
                f"{model.path}: tensor {names[2]}: its block scales times {experts} overflow"
            )
    router = np.zeros(experts * hidden, np.float32)
    return [router, gate, up, split_columns(scaled.reshape(hidden, -1), experts)]


def slice_moe(source: Path, target: Path, experts: int = 8) -> None:
    """Writes `target`, the sliced form of the dense llama GGUF `source`.

    Raises: UserError with one line for anything that cannot be sliced; OSError.
    """
    source, target = Path(source), Path(target)
    if experts < 2 or experts & (experts - 1):
        raise UserError(f"--experts {experts}: must be a power of two, 2 or more")
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{target}: the output would overwrite the input")
    model = open_model(source, architectures=("llama",))
    if model.integer("llama.expert_count", default=0):
        raise UserError(f"{source}: is a mixture of experts already")
    width = model.integer("llama.feed_forward_length")
    layers = range(model.integer("llama.block_count"))
    moe = [layer_tensors(model, layer, experts) for layer in layers]
    dense = {f"blk.{layer}.ffn_{part}.weight" for layer in layers for part in PARTS}
    kept = [info for info in model.tensors.values() if info.name not in dense]

    writer = _core.GgufWriter(str(target))
    changed = {
        "llama.feed_forward_length": width // experts,
        "llama.expert_count": experts,
        "llama.expert_used_count": experts,
    }
    for key, value in model.metadata.items():
        if key not in changed and not key.startswith("split."):
            writer.add(key, model.metadata.type_of(key), value)
    for key, value in changed.items():
        writer.add(key, "u32", value)
    for info in kept:
        writer.add_tensor(info.name, info.type, info.shape)
    for tensors in moe:
        for name, (kind, shape) in tensors.items():
            writer.add_tensor(name, kind, shape)
    for info in kept:
        writer.write(model.data(info.name))
    for layer in layers:
        for data in layer_bytes(model, layer, experts):
            writer.write(data)
    writer.finish()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ktransformers.util.slice_moe",
        description="Slice every FFN of a dense llama GGUF into equal experts.",
    )
    parser.add_argument("source", metavar="IN.gguf")
    parser.add_argument("target", metavar="OUT.gguf")
    parser.add_argument("--experts", type=int, default=8, help="a power of two (default 8)")
    options = parser.parse_args(argv)
    try:
        slice_moe(options.source, options.target, options.experts)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
