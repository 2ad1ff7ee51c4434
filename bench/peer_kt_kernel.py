"""kt-kernel's side of bench.cpu_layer under .venv-peers' Python: keeps a layer and answers lines.

Its Python package needs torch, of which only pointers would be used; the extension module inside is
loaded by the package's own choice of variant, and driven as its LLAMAFILE wrapper drives it.
"""

import importlib.metadata
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np

from bench.answering import answer

Q4_K, Q6_K, BF16 = 12, 14, 30


def extension():
    """The compiled module. Raises: ImportError."""
    spec = importlib.util.find_spec("kt_kernel")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("kt_kernel")
    path = Path(spec.submodule_search_locations[0]) / "_cpu_detect.py"
    chooser = importlib.util.spec_from_file_location("kt_cpu_detect", path)
    module = importlib.util.module_from_spec(chooser)
    chooser.loader.exec_module(module)
    return module.initialize()


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def read(job: dict, name: str) -> np.ndarray:
    offset, count = job["tensors"][name]
    return np.fromfile(job["model"], np.uint8, count, offset=offset)


class Layer:
    """job: model, tensors {gate, up, down: (offset, bytes)}, experts, used, hidden, intermediate,
    threads, longest (tokens of a forward)."""

    def __init__(self, job: dict):
        ext, variant = extension()
        self.job, self.rng = job, np.random.default_rng(7)
        start = time.perf_counter()
        pool = ext.WorkerPoolConfig()
        pool.subpool_count, pool.subpool_numa_map = 1, [0]
        pool.subpool_thread_count = [job["threads"]]
        self.cpu = ext.CPUInfer(pool)
        shape = (job["experts"], job["used"], job["hidden"], job["intermediate"])
        config = ext.moe.MOEConfig(*shape)
        config.layer_idx, config.pool = 0, self.cpu.backend_
        config.m_block, config.group_min_len = 32, 10
        config.max_len = config.group_max_len = job["longest"]
        # It reads these where they are: they must outlive the layer.
        self.weights = {name: read(job, name) for name in ("gate", "up", "down")}
        config.swiglu_limit = config.swiglu_alpha = 0.0
        config.gate_proj = address(self.weights["gate"])
        config.up_proj = address(self.weights["up"])
        config.down_proj = address(self.weights["down"])
        kinds = ext.kvcache.ggml_type
        config.gate_type = config.up_type = int(kinds(Q4_K))
        config.down_type, config.hidden_type = int(kinds(Q6_K)), int(kinds(BF16))
        self.moe = ext.moe.MOE(config)
        order = np.arange(job["experts"], dtype=np.int32)
        self.cpu.submit(self.moe.load_weights_task(address(order)))
        self.cpu.sync()
        version = importlib.metadata.version("kt-kernel")
        self.facts = {
            "engine": f"kt-kernel {version} LLAMAFILE {variant}", "threads": job["threads"],
            "load_seconds": time.perf_counter() - start,
        }  # fmt: skip

    def forward(self, tokens: int, times: int) -> list[float]:
        """Seconds of each forward, the first not counted where they are short."""
        x = self.rng.standard_normal((tokens, self.job["hidden"]), np.float32)
        x = (x.view(np.uint32) >> 16).astype(np.uint16)  # bf16
        out, size = np.zeros_like(x), np.array([tokens], np.int32)
        share = np.full((tokens, self.job["used"]), 1.0 / self.job["used"], np.float32)

        def once() -> float:
            ids = np.argsort(self.rng.random((tokens, self.job["experts"])), axis=1)
            ids = np.ascontiguousarray(ids[:, : self.job["used"]], np.int64)
            start = time.perf_counter()
            pointers = [address(array) for array in (ids, share, x, out)]
            task = self.moe.forward_task(address(size), self.job["used"], *pointers, False)
            self.cpu.submit(task)
            self.cpu.sync()
            return time.perf_counter() - start

        if tokens == 1:
            once()
        return [once() for _ in range(times)]


if __name__ == "__main__":
    sys.exit(answer(Layer))
