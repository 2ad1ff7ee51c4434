"""Runs inside .venv-peers: JSON on standard input -> speed of ggml's products on the last line.

Input {formats: {name: ggml_type}, rows, cols, tokens, threads, matrices, passes}; output
{name: GB/s of weights}, the median of the passes. A pass multiplies `matrices` matrices one after
the other, more than fit the caches. The libraries are those that llama-cpp-python was built with,
called through ctypes: its own bindings do not reach single products. Exit status 3: it is not
installed.
"""

import ctypes
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

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


def speed(ggml: Ggml, ggml_type: int, task: dict) -> float:
    rows, cols, tokens = task["rows"], task["cols"], task["tokens"]
    # At most four bytes a value, of which only what is filled is really taken.
    room = task["matrices"] * (rows * cols * 4 + rows * tokens * 8) + cols * tokens * 16
    context = ggml.init(InitParams(room + (16 << 20), None, False))
    graph = ggml.new_graph(context)
    x = ggml.new_tensor_2d(context, F32, cols, tokens)
    values = [(i * 7919 % 2001 - 1000) / 1000 for i in range(cols * tokens)]
    ctypes.memmove(ggml.get_data(x), (ctypes.c_float * len(values))(*values), 4 * len(values))
    # With the top two bits of every byte clear, a half is below 2 and no NaN.
    pattern = bytes(byte & 0x3F for byte in os.urandom(1 << 16))
    size = 0
    for _ in range(task["matrices"]):
        weights = ggml.new_tensor_2d(context, ggml_type, cols, rows)
        fill(ggml, weights, pattern)
        size += ggml.nbytes(weights)
        ggml.build_forward_expand(graph, ggml.mul_mat(context, weights, x))
    seconds = []
    for _ in range(task["passes"] + 1):
        start = time.perf_counter()
        ggml.graph_compute_with_ctx(context, graph, task["threads"])
        seconds.append(time.perf_counter() - start)
    ggml.free(context)
    return size / median(seconds[1:]) * 1e-9


def main() -> int:
    task = json.load(sys.stdin)
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return 3
    ggml = Ggml(Path(found.origin).parent / "lib")
    ggml.cpu_init()
    answer = {name: speed(ggml, number, task) for name, number in task["formats"].items()}
    print()
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
