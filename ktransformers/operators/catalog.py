"""Every operator that ships, by name and backend, and which upstream names it answers to.

An operator stands in for one module of transformers' tree; attention, MLP and MoE blocks work
through the operators of their children. The classes are imported when a plan is applied.
"""

from ktransformers.operators.registry import (
    REGISTRY,
    ExpertOptions,
    LatentOptions,
    NoOptions,
    UpstreamOp,
    WeightOptions,
    register,
)
from ktransformers.operators.upstream_names import UPSTREAM_CLASSES, UPSTREAM_OPS

_HERE = "ktransformers.operators"

# operator -> "file:Class" of its CPU implementation
CPU_OPERATORS = {
    "linear": "linear:Linear",
    "embedding": "embedding:Embedding",
    "norm.rms": "norm:RmsNorm",
    "rope": "rope:Rope",
    "attention.gqa": "attention:GqaAttention",
    "attention.mla": "attention:MlaAttention",
    "mlp.swiglu": "mlp:SwigluMlp",
    "moe.router": "moe:Router",
    "moe.experts": "moe:Experts",
    "moe.block": "moe:Block",
}

# Attention reads and writes the cache, which belongs to the core: its parts must be there too.
NEEDS = {
    "attention.gqa": ("linear", "norm.rms", "rope"),
    "attention.mla": ("linear", "norm.rms", "rope"),
}

# Those that own matrices may be told which type to load them as.
OPTIONS = {
    "linear": WeightOptions,
    "embedding": WeightOptions,
    "moe.experts": ExpertOptions,
    "attention.mla": LatentOptions,
}

for _name, _place in CPU_OPERATORS.items():
    register(
        _name,
        backend="cpu",
        factory=f"{_HERE}.{_place}",
        options=OPTIONS.get(_name, NoOptions),
        upstream=UPSTREAM_CLASSES.get(_name, ()),
        needs=NEEDS.get(_name, ()),
    )

# The same operators on a GPU: planned everywhere, so that a file for a machine with GPUs can be
# read and checked on one without. Norms and rotary embeddings are small: layers on a card copy
# theirs from the CPU's operators. Embeddings are rows of the file, one is read per token.
CUDA_OPERATORS = {
    "linear": "on_card:CardLinear",
    "embedding": "embedding:Embedding",
    "norm.rms": "norm:RmsNorm",
    "rope": "rope:Rope",
    "attention.gqa": "on_card:CardGqaAttention",
    "attention.mla": "on_card:CardMlaAttention",
    "mlp.swiglu": "on_card:CardMlp",
    "moe.router": "on_card:CardRouter",
    "moe.experts": "on_card:CardExperts",
    "moe.block": "on_card:CardBlock",
}

for _name in CPU_OPERATORS:
    register(
        _name,
        backend="cuda",
        factory=f"{_HERE}.{CUDA_OPERATORS[_name]}",
        options=OPTIONS.get(_name, NoOptions),
        needs=NEEDS.get(_name, ()),
    )

# Not a module of ours: the layers are lowered to a program of the core (runtime/lowering.py).
register("model", backend="cpu", factory="", upstream=UPSTREAM_CLASSES["model"])

# The module transformers built, with its weights dequantised: correct for any module, and the way
# to take one module out of the fast path.
register(
    "default",
    backend="torch",
    kind="",
    resident="float32",
    factory="",
    upstream=("default",),
)

for _name in UPSTREAM_CLASSES["unsupported"]:
    REGISTRY.alias_class(_name, None)
for _operator, _ops in UPSTREAM_OPS.items():
    for _op, _backend in _ops.items():
        REGISTRY.alias_op(_op, UpstreamOp(_operator, _backend))
