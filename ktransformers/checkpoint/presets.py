"""Which type each tensor of a file gets: the presets of `ktransformers quantize`. No torch.

A preset is a type for most matrices and a better one for those where rounding costs most: the
head, the values and the down projections of the first and last eighth of the layers and every third
between. That is the pattern llama.cpp's files of the same names follow, so that sizes and quality
are what people expect. Where a model has eight experts or more, attention and shared experts, read
for every token and small, get the better type throughout: they cost little.

KEEP is for folders of integer codes: it leaves them as they are.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ktransformers.checkpoint.pieces import FACTS, fitting_type
from ktransformers.errors import UserError

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# Small, or read by all that follows: kept as floats.
_FLOATS = re.compile(r"(norm|bias|ffn_gate_inp|ffn_gate_inp_shexp|rope_freqs|exp_probs_b)")
_VALUES = ("attn_v.weight", "attn_kv_b.weight", "attn_v_b.weight", "attn_kv_a_mqa.weight")
_DOWN = ("ffn_down.weight", "ffn_down_exps.weight", "ffn_down_shexp.weight")


@dataclass(frozen=True)
class Preset:
    """file_type: `general.file_type` of such files. base, better, head: types."""

    name: str
    file_type: int
    base: str
    better: str
    head: str


# Of folders with integer codes: what is stored as floats becomes q8_0 beside them.
KEEP = Preset("KEEP", 0, "q8_0", "q8_0", "q8_0")
_FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7}  # of KEEP, by the type of most values
PRESETS = {
    preset.name.lower(): preset
    for preset in (
        Preset("Q4_K_M", 15, "q4_k", "q6_k", "q6_k"),
        Preset("Q6_K", 18, "q6_k", "q6_k", "q6_k"),
        Preset("Q8_0", 7, "q8_0", "q8_0", "q8_0"),
        Preset("IQ4_XS", 30, "iq4_xs", "q5_k", "q6_k"),
        Preset("BF16", 32, "bf16", "bf16", "bf16"),
        Preset("F16", 1, "f16", "f16", "f16"),
        KEEP,
    )
}


def default_preset(model) -> Preset:
    """Of an open model when none is named."""
    return KEEP if getattr(model, "coded", ()) else PRESETS["q4_k_m"]


def file_type(chosen: Preset, types: Mapping[str, str], model) -> int:
    """`general.file_type` of the result."""
    if chosen is not KEEP:
        return chosen.file_type
    values: Counter[str] = Counter()
    for name in model.coded:
        values[types[name]] += math.prod(model.tensor(name).shape)
    return _FILE_TYPES.get(values.most_common(1)[0][0], _FILE_TYPES["q8_0"])


def preset(name: str) -> Preset:
    """Raises: UserError listing the presets."""
    found = PRESETS.get(name.lower())
    if found is None:
        raise UserError(
            f"preset '{name}': choose {', '.join(p.name for p in PRESETS.values())}; "
            "--tensor REGEX=TYPE changes single tensors"
        )
    return found


@dataclass(frozen=True)
class Override:
    """Tensors whose name `pattern` finds get `type`; search(name) is bounded in time."""

    pattern: str
    type: str
    search: Callable[[str], bool]


def writable(kind: str, where: str) -> str:
    """Raises: UserError for a type that nothing here writes."""
    if kind not in FACTS or not FACTS[kind]["can_quantize"]:
        can = ", ".join(name for name, row in FACTS.items() if row["can_quantize"])
        raise UserError(f"{where}: type '{kind}' cannot be written; choose one of {can}")
    return kind


def is_more(layer: int, layers: int) -> bool:
    """Whether a layer's values and down projection get the better type."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def preset_type(
    name: str, shape: Sequence[int], chosen: Preset, layers: int, experts: int, tied: bool
) -> str:
    """The type of one tensor of a model. tied: the embedding is the head, too."""
    if len(shape) == 1 or _FLOATS.search(name):
        return "f32"
    match = _LAYER.fullmatch(name)
    kind = chosen.base
    if match is None:
        kind = chosen.head if name == "output.weight" or tied else chosen.base
    else:
        layer, rest = int(match[1]), match[2]
        always = experts >= 8 and ("shexp" in rest or rest.startswith("attn_"))
        if always or (rest in _VALUES + _DOWN and is_more(layer, layers)):
            kind = chosen.better
    return fitting_type(kind, shape[-1])


def choose_types(model, chosen: Preset, overrides: Sequence[Override]) -> dict[str, str]:
    """{tensor: type} for every tensor of an open model. Raises: UserError for an override that
    matches nothing or asks for blocks that do not divide the rows, and for KEEP where there is
    nothing to keep."""
    coded = set(getattr(model, "coded", ())) if chosen is KEEP else set()
    if chosen is KEEP and not coded:
        raise UserError(f"preset KEEP: {model.path} has no int4 or int8 codes; choose another one")
    arch = model.architecture
    layers = model.integer(f"{arch}.block_count", 1)
    experts = model.integer(f"{arch}.expert_count", 0, default=0)
    tensors = model.tensors
    tied = "output.weight" not in tensors
    types = {}
    used: set[str] = set()
    for name, info in tensors.items():
        types[name] = info.type
        if name not in coded:
            types[name] = preset_type(name, info.shape, chosen, layers, experts, tied)
        for override in overrides:
            if override.search(name):
                used.add(override.pattern)
                kind = fitting_type(override.type, info.shape[-1])
                if kind != override.type:
                    raise UserError(
                        f"--tensor {override.pattern}={override.type}: {name} has rows of "
                        f"{info.shape[-1]} values, no whole number of blocks; try {kind}"
                    )
                types[name] = kind
                break
    unused = [o.pattern for o in overrides if o.pattern not in used]
    if unused:
        raise UserError(f"--tensor {unused[0]}: matches no tensor; `inspect --tensors` lists them")
    return types
