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
one expert. Needs NumPy; imports no torch.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ktransformers.errors import UserError


@dataclass(frozen=True)
class Scaling:
    """Where the numbers stand that a block's values are proportional to (offsets in bytes)."""

    values: int
    bytes: int
    scales: tuple[int, ...]
    dtype: str = "<f2"


# A block's values are linear in exactly these numbers, in every format listed.
SCALINGS = {
    "F32": Scaling(1, 4, (0,), "<f4"),
    "F16": Scaling(1, 2, (0,)),
    "Q4_0": Scaling(32, 18, (0,)),
    "Q4_1": Scaling(32, 20, (0, 2)),
    "Q5_0": Scaling(32, 22, (0,)),
    "Q5_1": Scaling(32, 24, (0, 2)),
    "Q8_0": Scaling(32, 34, (0,)),
    "Q2_K": Scaling(256, 84, (80, 82)),
    "Q3_K": Scaling(256, 110, (108,)),
    "Q4_K": Scaling(256, 144, (0, 2)),
    "Q5_K": Scaling(256, 176, (0, 2)),
    "Q6_K": Scaling(256, 210, (208,)),
    "IQ4_NL": Scaling(32, 18, (0,)),
    "IQ4_XS": Scaling(256, 136, (0,)),
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


def slice_layer(tensors: dict, layer: int, experts: int) -> dict:
    """The MoE tensors of one layer: {name: (type, blocks [..., row_bytes] uint8)}.

    tensors: {name: (type, shape (out, in), blocks [out, row_bytes])} of the dense file.
    """
    names = {part: f"blk.{layer}.ffn_{part}.weight" for part in ("gate", "up", "down")}
    for name in names.values():
        if name not in tensors:
            raise UserError(f"tensor {name} is missing: the input must be a dense llama model")
    width = tensors[names["gate"]][1][0]
    kind, shape, down = tensors[names["down"]]
    up_kind = tensors[names["up"]][0]
    for name, one in ((names["down"], kind), (names["up"], up_kind)):
        if one not in SCALINGS:
            raise UserError(f"tensor {name} has type {one}; can slice {', '.join(SCALINGS)}")
    scaling = SCALINGS[kind]
    if shape[1] != width or width % experts or width // experts % scaling.values:
        raise UserError(
            f"tensor {names['down']} has {shape[1]} columns of type {kind}: {experts} experts"
            f" need a multiple of {experts * scaling.values}"
        )
    parts = {}
    for part in ("gate", "up"):
        part_kind, part_shape, blocks = tensors[names[part]]
        if part_shape[0] != width:
            raise UserError(f"tensor {names[part]} has {part_shape[0]} rows, expected {width}")
        parts[part] = (part_kind, blocks.reshape(experts, width // experts, -1))
    scaled = multiply(down, scaling, experts)
    if scaled is None:
        scaled = down
        up = multiply(parts["up"][1], SCALINGS[up_kind], experts)
        if up is None:
            raise UserError(f"tensor {names['down']}: its block scales times {experts} overflow")
        parts["up"] = (up_kind, up)
    parts["down"] = (kind, split_columns(scaled, experts))
    hidden = shape[0]
    router = np.zeros((experts, hidden), np.float32)
    return {
        f"blk.{layer}.ffn_gate_inp.weight": ("F32", router.view(np.uint8)),
        **{f"blk.{layer}.ffn_{part}_exps.weight": value for part, value in parts.items()},
    }


def slice_moe(source: Path, target: Path, experts: int = 8) -> None:
    """Writes `target`, the sliced form of the dense llama GGUF `source`.

    Raises: UserError with one line for anything that cannot be sliced.
    """
    import gguf

    source, target = Path(source), Path(target)
    if experts < 2 or experts & (experts - 1):
        raise UserError(f"--experts {experts}: must be a power of two, 2 or more")
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: the output would overwrite the input")
    try:
        reader = gguf.GGUFReader(source)
    except Exception as error:  # the reader raises many kinds for a file that is not GGUF
        raise UserError(f"{source}: not a readable GGUF file ({error})") from error

    fields = reader.fields
    architecture = fields["general.architecture"].contents()
    if architecture != "llama":
        raise UserError(f"{source}: architecture {architecture!r}, can slice 'llama' only")
    if "llama.expert_count" in fields and fields["llama.expert_count"].contents():
        raise UserError(f"{source}: already a mixture of experts")
    layers = int(fields["llama.block_count"].contents())
    width = int(fields["llama.feed_forward_length"].contents())
    tensors = {
        t.name: (
            t.tensor_type.name,
            tuple(int(n) for n in reversed(t.shape)),
            t.data.view(np.uint8),
        )
        for t in reader.tensors
    }

    part = target.with_name(target.name + ".part")
    writer = gguf.GGUFWriter(part, architecture)
    for field in fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "llama.feed_forward_length":
            value = width // experts
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(experts)

    sliced = {}
    for layer in range(layers):
        sliced |= slice_layer(tensors, layer, experts)
    dense = (".ffn_gate.", ".ffn_up.", ".ffn_down.")
    keep = {
        name: (kind, blocks)
        for name, (kind, _, blocks) in tensors.items()
        if not any(infix in name for infix in dense)
    }
    for name, (kind, blocks) in {**keep, **sliced}.items():
        raw = gguf.GGMLQuantizationType[kind]
        data = blocks.view(np.float32) if kind == "F32" else blocks
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(target)


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
