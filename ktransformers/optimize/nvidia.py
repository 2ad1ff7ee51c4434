"""NVIDIA GPUs of this machine and the CUDA module, for the lines that every start prints.

The driver is asked through its own library (NVML); neither torch nor the CUDA toolkit is needed.
"""

import ctypes
import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from ktransformers import cuda_library
from ktransformers.errors import UserError
from ktransformers.optimize.system import read

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Card:
    """name, driver: as NVIDIA writes them. vram: bytes it has; free: bytes nobody took."""

    name: str
    vram: int
    free: int
    driver: str


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong),
                ("used", ctypes.c_ulonglong)]  # fmt: skip


def cards(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> list[Card]:
    """The cards that the driver shows this process; none where there is no driver.

    load: opens a shared library by name (NVML's).
    """
    try:
        nvml = load("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return []
    except OSError:
        return []
    driver, count = ctypes.create_string_buffer(96), ctypes.c_uint()
    nvml.nvmlSystemGetDriverVersion(driver, 96)
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    found = []
    for index in range(count.value):
        handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), _Memory()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue  # not ours to use
        nvml.nvmlDeviceGetName(handle, name, 96)
        nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        found.append(Card(name.value.decode(), memory.total, memory.free, driver.value.decode()))
    nvml.nvmlShutdown()
    return found


def vram_limit() -> int | None:
    """Bytes a card may be filled with: KT_VRAM_LIMIT, as in 24GiB, 24G or 25769803776.

    Raises: UserError for what is no size.
    """
    limit = size_named("KT_VRAM_LIMIT")
    if limit == 0:
        raise UserError(f"KT_VRAM_LIMIT={os.environ['KT_VRAM_LIMIT']}: write a size, as in 24GiB")
    return limit


def pin_limit() -> int | None:
    """Bytes of experts in RAM that may be pinned for cards: KT_PIN_LIMIT; 0: none.

    Raises: UserError for what is no size.
    """
    return size_named("KT_PIN_LIMIT")


def size_named(name: str) -> int | None:
    """An environment variable's bytes, None where it is not set. Raises: UserError."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    size = float(match[1]) * UNITS[match[2]] if match else math.inf
    if size >= 2**63:  # what no card's memory comes near, and no C integer holds
        raise UserError(f"{name}={text[:40]}: write a size, as in 24GiB")
    return int(size)


@functools.cache
def module_state() -> tuple[bool, str]:
    """(whether the CUDA module loads, what to say of it)."""
    path = cuda_library.place()
    if not path.exists():
        if "KT_CUDA_LIBRARY" in os.environ:
            return False, f"off, KT_CUDA_LIBRARY names no file: {path}"
        return False, "not built; build it with: make cuda"
    try:
        cuda_library.CudaLibrary(path)
    except cuda_library.CudaLibraryError as error:
        return False, f"off, {error}; build it again with: make cuda"
    except OSError as error:
        return False, f"off, {error}"
    return True, "on"


def start_lines(gpu: str = "auto", found: list[Card] | None = None) -> list[str]:
    """What a start says about GPUs: a line per card and one about the module; nothing where there
    is no card. gpu: "auto" or "off", the user's word. Raises: UserError as vram_limit."""
    limit = vram_limit()
    found = cards() if found is None else found
    if not found:
        if read("/proc/driver/nvidia/version"):
            return ["GPU: an NVIDIA driver is loaded, but no card answers: look at nvidia-smi"]
        return []
    lines = []
    for index, card in enumerate(found):
        text = f"GPU {index}: {card.name}, {card.vram / 2**30:.1f} GiB"
        text += f" ({card.free / 2**30:.1f} free), driver {card.driver}"
        if limit is not None and limit < card.vram:
            text += f"; KT_VRAM_LIMIT allows {limit / 2**30:.1f} GiB"
        lines.append(text)
    lines.append("CUDA module: " + ("off by --gpu off" if gpu == "off" else module_state()[1]))
    return lines
