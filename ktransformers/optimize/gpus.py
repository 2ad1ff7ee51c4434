"""The GPUs of this machine as the planner needs them: memory, and limits by model. No torch.

Memory comes from the driver (optimize/nvidia.py). Bandwidth and peak are its makers' published
figures, by name; a card that is not listed is taken as the weakest here, which places as much on it
and predicts less.
"""

import ctypes

from ktransformers.cuda_library import CudaLibrary
from ktransformers.optimize.box import GB, Gpu
from ktransformers.optimize.nvidia import Card, cards, module_state, vram_limit

# name -> (GB/s of its memory, dense bf16 TFLOPS)
PUBLISHED = {
    "H200": (4800, 989), "H100 NVL": (3900, 835), "H100 PCIe": (2000, 756), "H100": (3350, 989),
    "A100-SXM4-80GB": (2039, 312), "A100 80GB": (1935, 312), "A100": (1555, 312),
    "L40S": (864, 362), "L40": (864, 181), "L20": (864, 119), "L4": (300, 121),
    "A6000": (768, 155), "RTX 6000 Ada": (960, 364), "RTX PRO 6000": (1792, 500),
    "RTX 5090": (1792, 209), "RTX 5080": (960, 113), "RTX 5070 Ti": (896, 88),
    "RTX 5060 Ti": (448, 47), "RTX 4090": (1008, 165), "RTX 4080": (717, 97),
    "RTX 4070": (504, 58), "RTX 4060 Ti": (288, 44), "RTX 4060": (272, 30),
    "RTX 3090": (936, 71), "RTX 3080": (760, 60), "RTX 3070": (448, 41), "RTX 3060": (360, 25),
    "T4": (300, 65), "V100": (900, 112),
}  # fmt: skip
WEAKEST = (272, 25)  # the slowest of these
PCIE = 25  # GB/s that copies reach on 16 lanes of generation 4


def has_gpu_operators() -> bool:
    """Whether anything is computed on a GPU here: without, the planner leaves them alone."""
    return module_state()[0]


def cuda_devices(gpu: str = "auto") -> int:
    """How many cards rules may name: those the CUDA module finds. gpu: "auto" or "off"."""
    if gpu == "off" or not has_gpu_operators():
        return 0
    count = ctypes.c_int()
    CudaLibrary().call("devices", ctypes.byref(count))
    return count.value


def gpus_here(found: list[Card] | None = None) -> tuple[Gpu, ...]:
    """The cards the driver names, each with what is free of it (KT_VRAM_LIMIT bounds that)."""
    limit = vram_limit()
    made = []
    for card in cards() if found is None else found:
        read, ops = limits_of(card.name)
        free = card.free if limit is None else min(card.free, limit)
        made.append(Gpu(float(free), read * GB, ops * 1e12, PCIE * GB))
    return tuple(made)


def limits_of(name: str) -> tuple[float, float]:
    """(GB/s, TFLOPS) of a card: the longest known name that is part of its name."""
    plain = name.lower()
    known = [key for key in PUBLISHED if key.lower() in plain]
    return PUBLISHED[max(known, key=len)] if known else WEAKEST
