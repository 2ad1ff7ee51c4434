"""The machine a plan is made for: measured here, or described in a file. No torch.

    # box.yaml
    ram_gb: 512
    read_gb_per_s: 614         # what all cores together read from memory
    int8_tops: 35              # integer products of all cores, 10^12 operations a second
    numa_nodes: 2              # optional, 1
    cores: 64                  # optional
    gpus:                      # optional
      - {vram_gb: 24, gb_per_s: 1008, tflops: 165, pcie_gb_per_s: 25}

GB are 10^9 bytes, in files and in what is printed.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

from ktransformers.optimize.rules import Yaml, read_yaml
from ktransformers.optimize.rules_own import known_fields
from ktransformers.optimize.system import available_memory, meminfo, memory_limit, usable_cores

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """Units: bytes, bytes per second, floating point operations per second."""

    vram: float
    read: float
    ops: float
    pcie: float


@dataclass(frozen=True)
class Box:
    """Units as Gpu's; int8: integer operations per second. measured: by this program, just now."""

    name: str
    ram: float
    read: float
    int8: float
    nodes: int = 1
    cores: int = 0
    gpus: tuple[Gpu, ...] = ()
    measured: bool = False

    def with_more(self, nbytes: float) -> "Box":
        """The same with so many more bytes on its first GPU, or in RAM where it has none."""
        if not self.gpus:
            return replace(self, ram=self.ram + nbytes)
        first, *others = self.gpus
        return replace(self, gpus=(replace(first, vram=first.vram + nbytes), *others))

    def line(self) -> str:
        """One line about it."""
        text = f"{self.name}: {self.ram / GB:.0f} GB RAM at {self.read / GB:.0f} GB/s, "
        text += f"{self.int8 / 1e12:.2f} int8 TOPS"
        for gpu in self.gpus:
            text += f"; GPU {gpu.vram / GB:.0f} GB at {gpu.read / GB:.0f} GB/s, "
            text += f"PCIe {gpu.pcie / GB:.0f} GB/s"
        return text


BOX_KEYS = {"ram_gb": 1e7, "read_gb_per_s": 1e6, "int8_tops": 1e6, "numa_nodes": 64,
            "cores": 1 << 16, "gpus": 0}  # fmt: skip
GPU_KEYS = {"vram_gb": 1e5, "gb_per_s": 1e6, "tflops": 1e6, "pcie_gb_per_s": 1e5}


def read_box(path: str | Path) -> Box:
    """A machine described in a file. Raises: UserError with file, line and column."""
    root = read_yaml(path, "a machine")
    found = known_fields(root, tuple(BOX_KEYS))
    for key in ("ram_gb", "read_gb_per_s", "int8_tops"):
        if key not in found:
            raise root.fail(f"the machine has no {key}")
    value = {key: _number(node, BOX_KEYS[key]) for key, (_, node) in found.items() if key != "gpus"}
    gpus = []
    for entry in found["gpus"][1].items() if "gpus" in found else ():
        entry.what = "a GPU"
        fields = known_fields(entry, tuple(GPU_KEYS))
        for key in GPU_KEYS:
            if key not in fields:
                raise entry.fail(f"the GPU has no {key}")
        one = {key: _number(node, GPU_KEYS[key]) for key, (_, node) in fields.items()}
        gpus.append(Gpu(one["vram_gb"] * GB, one["gb_per_s"] * GB, one["tflops"] * 1e12,
                        one["pcie_gb_per_s"] * GB))  # fmt: skip
    return Box(
        Path(path).stem, value["ram_gb"] * GB, value["read_gb_per_s"] * GB,
        value["int8_tops"] * 1e12, int(value.get("numa_nodes", 1)), int(value.get("cores", 0)),
        tuple(gpus),
    )  # fmt: skip


def _number(node: Yaml, most: float) -> float:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise node.fail(f"{node.what} must be a number above 0, at most {most:g}")
    return float(value)


@cache
def measured_limits(threads: int) -> tuple[float, float]:
    """(bytes read per second, integer operations per second): half a second, once a process.

    Medians, as in the rows that the planner's factors were fitted on: what a run will mostly find.
    """
    from ktransformers import _core

    context = _core.Context(threads)
    meter = _core.LimitMeter(context, 1 << 27)
    read = median(meter.read_gbps(context) for _ in range(15))
    return read * GB, median(meter.int8_tops(context) for _ in range(9)) * 1e12


def here(threads: int | None = None) -> Box:
    """This machine: memory as free now, and GPUs where this build uses any. Speeds are unknown."""
    from ktransformers.optimize.gpus import gpus_here, has_gpu_operators

    total = meminfo().get("MemTotal", 0)
    ram = min(available_memory() or total, memory_limit() or total)
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    gpus = gpus_here() if has_gpu_operators() else ()
    return Box("this machine", ram, 1.0, 1.0, nodes, threads or usable_cores(), gpus)


def this_box(threads: int | None = None) -> Box:
    """The same with its speeds, measured."""
    read, int8 = measured_limits(threads or 0)
    return replace(here(threads), read=read, int8=int8, measured=True)
