"""Tokens per second of a placement, from bytes, operations and the machine's limits. No torch.

Each constant is a part of a limit that real runs reach. Fitted: on the two synthetic models that
bench/fit_check.py names, on the machine of docs/planner.md, by least squares over its rows. The
GPU's are published figures (docs/planner.md says whose); nothing here was measured on one.
"""

from dataclasses import dataclass

from ktransformers.optimize.box import Box, Gpu
from ktransformers.optimize.facts import ModelFacts

CPU_READ = 0.86  # of the read bandwidth while experts and linears stream
CPU_KV_READ = 0.60  # of it while attention reads the cache
CPU_LAYER = 25e-6  # seconds of joins, norms and router per layer and token
CPU_DOTS = 0.55  # of the int8 rate in prompts
CPU_HALVES = 0.30  # of it in decode: two integer products per weight, unpacking beside them
CPU_FLOATS = 0.20  # of the int8 rate, for attention in float32
GPU_READ = 0.70  # of its memory's bandwidth, whole steps
GPU_DOTS = 0.50  # of its peak, long prompts
GPU_LAYER = 17e-6  # thirteen launches of 1.3 us inside a graph
HANDOFF = 10e-6  # to the CPU and back, per layer with experts there
PCIE = 0.85
CPU_CHUNK = 512  # tokens of a prompt that one pass over the weights serves
GPU_CHUNK = 8192


@dataclass(frozen=True)
class Split:
    """How a placement divides a token's work. Units: bytes and operations of one token.

    gpu: (gpu, bytes read there) pairs; gpu_experts: the part of the routed experts' bytes that is
    on GPUs; cpu_layers: layers whose experts the CPU computes; cache_on_gpu: whether attention is.
    """

    gpu: tuple[tuple[Gpu, float], ...]
    gpu_experts: float
    cpu_bytes: float
    cpu_ops: float
    cpu_layers: int
    cache_on_gpu: float


def decode_seconds(facts: ModelFacts, box: Box, split: Split, context: int) -> dict[str, float]:
    """Seconds of one generated token at `context` positions, by what takes them."""
    kv = facts.kv_bytes * facts.layers * context
    dots = facts.attention_ops * facts.layers * context
    on_cpu = 1.0 - split.cache_on_gpu
    parts = {
        "weights on CPU": max(
            split.cpu_bytes / (box.read * CPU_READ), 2 * split.cpu_ops / (box.int8 * CPU_HALVES)
        ),
        "cache on CPU": on_cpu * max(kv / (box.read * CPU_KV_READ), dots / (box.int8 * CPU_FLOATS)),
        "layers on CPU": CPU_LAYER * (facts.layers if on_cpu else 0),
    }
    if split.gpu:
        fastest = max(gpu.read for gpu, _ in split.gpu)
        parts["weights on GPU"] = sum(n / (gpu.read * GPU_READ) for gpu, n in split.gpu)
        parts["cache on GPU"] = split.cache_on_gpu * kv / (fastest * GPU_READ)
        parts["launches"] = GPU_LAYER * facts.layers * split.cache_on_gpu
        parts["hand-over"] = HANDOFF * split.cpu_layers
    return parts


def prompt_speed(facts: ModelFacts, box: Box, split: Split, length: int) -> tuple[float, str]:
    """(tokens per second of a prompt of `length`, what bounds it)."""
    ops = sum(group.ops for group in facts.groups.values())
    head = facts.groups.get(("head", -1))
    ops -= head.ops if head else 0.0  # one row of a prompt needs it
    dots = facts.attention_ops * facts.layers * length / 2
    experts = sum(group.nbytes for group in facts.of("experts"))
    chunk = min(length, CPU_CHUNK)
    touched = experts * (1 - (1 - facts.used / facts.experts) ** chunk) if facts.experts else 0
    others = facts.active - sum(group.active for group in facts.of("experts"))
    cpu_ops = ops * split.cpu_ops / max(ops, 1.0) if split.gpu else ops
    read = (touched * (1 - split.gpu_experts) + (0 if split.gpu else others)) / box.read / CPU_READ
    work = chunk * min(cpu_ops, ops) / (box.int8 * CPU_DOTS)
    if not split.gpu:
        work += chunk * dots / (box.int8 * CPU_FLOATS)
    best, why = 0.0, ""
    if max(read, work) > 0:
        best, why = chunk / max(read, work), "CPU arithmetic" if work > read else "reading experts"
    if split.gpu:
        pcie = sum(gpu.pcie for gpu, _ in split.gpu) * PCIE
        peak = sum(gpu.ops for gpu, _ in split.gpu) * GPU_DOTS
        part = min(length, GPU_CHUNK)
        stream = experts * (1 - split.gpu_experts) / pcie
        gpu = part / max(stream, part * (ops + dots) / peak)
        if gpu > best:
            by = "streaming experts over PCIe" if stream > part * (ops + dots) / peak else "GPU"
            best, why = gpu, by
    return best, why
