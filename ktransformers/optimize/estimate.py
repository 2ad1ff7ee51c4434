"""Tokens per second of a placement, from bytes, operations and the machine's limits. No torch.

What the CPU does takes a sum of parts: work, divided by a limit of the machine, times how much
longer than that limit allows real runs take. bench/fit_check.py fits these factors on models of
other widths than those it then tests them with (bench/fit_rows.json, docs/planner.md). The GPU's
are published figures; nothing here was measured on one.
"""

from dataclasses import dataclass

from ktransformers.optimize.box import Box, Gpu
from ktransformers.optimize.card_steps import MOST_ROWS
from ktransformers.optimize.facts import ModelFacts

# A generated token: {part: seconds / (work / limit)}; "layers": seconds each.
DECODE = {"weights": 0.944, "cache": 0.0, "attention": 4.74, "layers": 311e-6}
# A chunk of a prompt; "rows": what a value between layers takes besides products (norms, rounding,
# routing, sorting by expert), in the time of a thousand operations.
PROMPT = {"linears": 1.46, "attention": 2.31, "experts": 2.92, "rows": 44.8}
DECODE_DOTS = 2.2  # two integer products per weight, where they take longer than the reading
LONG_PROMPT = 128  # tokens of which latent keys and values are expanded (csrc/cpu/ops/attention.h)
CPU_CHUNK = 512  # tokens of a prompt that one pass over the weights serves
EXACT = 64  # positions of a sequence whose activations are rounded twice as finely
GPU_READ = 0.70  # of its memory's bandwidth, whole steps
GPU_DOTS = 0.50  # of its peak, long prompts
GPU_LAYER = 17e-6  # thirteen launches of 1.3 us inside a graph
HANDOFF = 10e-6  # to the CPU and back, per layer with experts there
PCIE = 0.85

Parts = dict[str, float]


@dataclass(frozen=True)
class Split:
    """How a placement divides a token's work. Units: bytes and operations of one token.

    gpu: (gpu, bytes read there) pairs; gpu_experts: the part of the routed experts' bytes that is
    on GPUs; prompt_ops: cpu_ops without the head, which a prompt asks once; cpu_layers: layers
    whose experts the CPU computes; cache_on_gpu: whether attention is.
    """

    gpu: tuple[tuple[Gpu, float], ...]
    gpu_experts: float
    cpu_bytes: float
    cpu_ops: float
    prompt_ops: float
    cpu_layers: int
    cache_on_gpu: float


def decode_work(facts: ModelFacts, box: Box, split: Split, context: int) -> Parts:
    """{part: seconds at the limits} of the CPU's share of one token behind `context` positions."""
    share = 1.0 - split.cache_on_gpu
    return {
        "weights": split.cpu_bytes / box.read,
        "cache": share * facts.kv_bytes * facts.layers * context / box.read,
        "attention": share * facts.attention_ops * facts.layers * context / box.int8,
        "layers": facts.layers * share,
    }


def prompt_work(facts: ModelFacts, box: Box, split: Split, start: int, count: int) -> Parts:
    """{part: seconds at the limits} of the CPU's share of `count` prompt tokens behind `start`."""
    share = 1.0 - split.cache_on_gpu
    finely = max(0, min(EXACT - start, count))
    end = start + count
    if facts.expand_ops and count < LONG_PROMPT:
        attention = count * (start + end) / 2 * facts.attention_ops
    else:
        attention = count * (start + end) / 2 * facts.prompt_ops + end * facts.expand_ops
    return {
        "linears": split.prompt_ops * (count + finely) / box.int8,
        "attention": share * attention * facts.layers / box.int8,
        "experts": (1 - split.gpu_experts) * facts.touched(count) / box.read,
        "rows": 1e3 * share * facts.layers * count * facts.hidden / box.int8,
    }


def total(work: Parts, factors: Parts) -> float:
    """Seconds of all parts."""
    return sum(factors[name] * amount for name, amount in work.items())


def decode_seconds(facts: ModelFacts, box: Box, split: Split, context: int) -> Parts:
    """Seconds of one generated token at `context` positions, by what takes them."""
    work = decode_work(facts, box, split, context)
    parts = {f"{name} on CPU": DECODE[name] * amount for name, amount in work.items()}
    dots = DECODE_DOTS * 2 * split.cpu_ops / box.int8
    parts["weights on CPU"] = max(parts["weights on CPU"], dots)
    if split.gpu:
        kv = facts.card_kv_bytes * facts.layers * context
        fastest = max(gpu.read for gpu, _ in split.gpu)
        parts["weights on GPU"] = sum(n / (gpu.read * GPU_READ) for gpu, n in split.gpu)
        parts["cache on GPU"] = split.cache_on_gpu * kv / (fastest * GPU_READ)
        parts["launches"] = GPU_LAYER * facts.layers * split.cache_on_gpu
        parts["hand-over"] = HANDOFF * split.cpu_layers
    return parts


def cpu_prompt_seconds(facts: ModelFacts, box: Box, split: Split, length: int) -> Parts:
    """Seconds of the CPU's share of a prompt of `length`, by what takes them."""
    parts = dict.fromkeys(PROMPT, 0.0)
    for start in range(0, length, CPU_CHUNK):
        work = prompt_work(facts, box, split, start, min(CPU_CHUNK, length - start))
        for name, amount in work.items():
            parts[name] += PROMPT[name] * amount
    return parts


BOUNDS = {"linears": "CPU arithmetic", "attention": "CPU arithmetic of attention",
          "experts": "reading experts", "rows": "norms and rounding"}  # fmt: skip


def prompt_speed(facts: ModelFacts, box: Box, split: Split, length: int) -> tuple[float, str]:
    """(tokens per second of a prompt of `length`, what bounds it)."""
    parts = cpu_prompt_seconds(facts, box, split, length)
    best, why = 0.0, ""
    if sum(parts.values()) > 0:
        best, why = length / sum(parts.values()), BOUNDS[max(parts, key=parts.get)]
    if split.gpu:
        ops = facts.ops - facts.head_ops + facts.prompt_ops * facts.layers * length / 2
        pcie = sum(gpu.pcie for gpu, _ in split.gpu) * PCIE
        peak = sum(gpu.ops for gpu, _ in split.gpu) * GPU_DOTS
        part = min(length, MOST_ROWS)
        stream = facts.experts_bytes * (1 - split.gpu_experts) / pcie
        gpu = part / max(stream, part * ops / peak)
        if gpu > best:
            by = "streaming experts over PCIe" if stream > part * ops / peak else "GPU"
            best, why = gpu, by
    return best, why
