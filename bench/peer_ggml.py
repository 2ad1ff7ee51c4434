"""ggml's products, run inside .venv-peers: a process that answers lines (bench.answering).

The job: {rows, cols, tokens, threads, matrices}. "take" makes the matrices of a type, more than fit
the caches; "run" multiplies them one after the other. The libraries are those that llama-cpp-python
was built with, called through ctypes: its own bindings do not reach single products.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
import time
from pathlib import Path
from statistics import median

from bench.answering import answer

POINTER = ctypes.c_void_p
F32 = 0


class InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


SIGNATURES = {
    "ggml_init": ([InitParams], POINTER),
    "ggml_free": ([POINTER], None),
    "ggml_new_tensor_2d": ([POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64], POINTER),
    "ggml_mul_mat": ([POINTER, POINTER, POINTER], POINTER),
    "ggml_new_graph": ([POINTER], POINTER),
    "ggml_build_forward_expand": ([POINTER, POINTER], None),
    "ggml_get_data": ([POINTER], POINTER),
    "ggml_nbytes": ([POINTER], ctypes.c_size_t),
    "ggml_graph_compute_with_ctx": ([POINTER, POINTER, ctypes.c_int], ctypes.c_int),
    "ggml_cpu_init": ([], None),
}


class Ggml:
    """The functions of SIGNATURES as attributes, without their prefix."""

    def __init__(self, folder: Path):
        libraries = [
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
            for name in ("libggml-base.so", "libggml-cpu.so")
        ]
        for name, (arguments, result) in SIGNATURES.items():
            function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
            function.argtypes, function.restype = arguments, result
            setattr(self, name.removeprefix("ggml_"), function)


def fill(ggml: Ggml, tensor: int, pattern: bytes) -> None:
    start, size = ggml.get_data(tensor), ggml.nbytes(tensor)
    for at in range(0, size, len(pattern)):
        ctypes.memmove(start + at, pattern, min(len(pattern), size - at))


class Products:
    """Raises: ImportError where llama-cpp-python is not installed."""

    def __init__(self, job: dict):
        found = importlib.util.find_spec("llama_cpp")
        if found is None or found.origin is None:
            raise ImportError("llama_cpp")
        self.job, self.context = job, None
        self.ggml = Ggml(Path(found.origin).parent / "lib")
        self.ggml.cpu_init()
        version = importlib.metadata.version("llama-cpp-python")
        self.facts = {"engine": f"llama-cpp-python {version}"}

    def take(self, ggml_type: int) -> int:
        """Bytes of the matrices, which replace those of the type before."""
        ggml, job = self.ggml, self.job
        rows, cols, tokens = job["rows"], job["cols"], job["tokens"]
        if self.context is not None:
            ggml.free(self.context)
        # At most four bytes a value, of which only what is filled is really taken.
        room = job["matrices"] * (rows * cols * 4 + rows * tokens * 8) + cols * tokens * 16
        self.context = ggml.init(InitParams(room + (16 << 20), None, False))
        self.graph = ggml.new_graph(self.context)
        x = ggml.new_tensor_2d(self.context, F32, cols, tokens)
        values = [(i * 7919 % 2001 - 1000) / 1000 for i in range(cols * tokens)]
        ctypes.memmove(ggml.get_data(x), (ctypes.c_float * len(values))(*values), 4 * len(values))
        # With the top two bits of every byte clear, a half is below 2 and no NaN.
        pattern = bytes(byte & 0x3F for byte in os.urandom(1 << 16))
        self.size = 0
        for _ in range(job["matrices"]):
            weights = ggml.new_tensor_2d(self.context, ggml_type, cols, rows)
            fill(ggml, weights, pattern)
            self.size += ggml.nbytes(weights)
            ggml.build_forward_expand(self.graph, ggml.mul_mat(self.context, weights, x))
        self.run(1)
        return self.size

    def run(self, passes: int) -> float:
        """GB/s of weights: the median of the passes."""
        seconds = []
        for _ in range(passes):
            start = time.perf_counter()
            self.ggml.graph_compute_with_ctx(self.context, self.graph, self.job["threads"])
            seconds.append(time.perf_counter() - start)
        return self.size / median(seconds) * 1e-9


if __name__ == "__main__":
    sys.exit(answer(Products))
