"""The card under test: memory, time, limits. Its twin is the emulated one, on which the same code
runs on a machine without a GPU: right or wrong, never fast."""

import ctypes
import time
from statistics import median

import torch

from ktransformers.cuda_library import CudaLibrary

ROTATED_BYTES = 400 << 20  # more than any L2 cache several times: every launch meets cold weights


class Card:
    """A GPU of torch's, and the library on it."""

    emulated = False

    def __init__(self, library: CudaLibrary) -> None:
        self.library = library
        name, sms, arch = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        total, free = ctypes.c_size_t(), ctypes.c_size_t()
        library.call("device", 0, name, *map(ctypes.byref, (sms, arch, total, free)))
        self.name, self.sms, self.arch = name.value.decode(), sms.value, arch.value
        self.memory = total.value
        self.device = torch.device("cuda")

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

    def copies(self, nbytes: int) -> int:
        """How many copies of operands of so many bytes make every launch meet cold ones."""
        return max(1, min(64, -(-ROTATED_BYTES // nbytes)))

    def seconds(self, launches: list) -> float:
        """Seconds of one launch: all of them captured into one graph, replayed, the median of
        replays divided by their number. A launch takes no argument and goes to stream()."""
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for launch in launches[:2]:
                launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for launch in launches:
                launch()
        graph.replay()
        torch.cuda.synchronize()
        times = []
        for _ in range(9):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
        return median(times) / len(launches)

    def limits(self) -> dict:
        """copy_gbps: device to device, read and written bytes; bf16_tflops: an 8192 cube;
        h2d_gbps: pinned host memory to the card."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy = 2 * source.numel() / self.seconds([lambda: target.copy_(source)] * 4)
        cube = 8192
        a = torch.randn(cube, cube, dtype=torch.bfloat16, device=self.device)
        b = torch.randn_like(a)
        c = torch.empty_like(a)
        peak = 2 * cube**3 / self.seconds([lambda: torch.mm(a, b, out=c)] * 4)
        host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
        part = target[: host.numel()]
        pcie = host.numel() / self.seconds([lambda: part.copy_(host, non_blocking=True)] * 2)
        return {"copy_gbps": copy / 1e9, "bf16_tflops": peak / 1e12, "h2d_gbps": pcie / 1e9}


class EmulatedCard(Card):
    """Kernels on fibres: the memory they may touch is the library's own."""

    emulated = True

    def __init__(self, library: CudaLibrary) -> None:
        super().__init__(library)
        self.device = torch.device("cpu")

    def zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        count = torch.Size(shape).numel()
        nbytes = max(1, count) * dtype.itemsize
        address = ctypes.c_void_p()
        self.library.call("allocate", ctypes.c_size_t(nbytes), ctypes.byref(address))
        memory = (ctypes.c_uint8 * nbytes).from_address(address.value)
        return torch.frombuffer(memory, dtype=dtype, count=count).view(shape).zero_()

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.zeros(*tensor.shape, dtype=tensor.dtype).copy_(tensor)

    def stream(self) -> None:
        return None

    def copies(self, nbytes: int) -> int:
        return 1

    def seconds(self, launches: list) -> float:
        begin = time.perf_counter()
        for launch in launches:
            launch()
        return (time.perf_counter() - begin) / len(launches)

    def limits(self) -> dict:
        return {"copy_gbps": 1.0, "bf16_tflops": 1.0, "h2d_gbps": 1.0}


def nmse(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Squared error over the expected values' squares."""
    error = (got.double() - expected.double()).square().sum()
    return float(error / expected.double().square().sum())
