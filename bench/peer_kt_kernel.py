"""kt-kernel's side of bench.cpu_layer, run inside .venv-peers: a JSON job on standard input,
seconds on the last line. Exit status 3: it is not installed.

Its Python package needs torch, of which only pointers would be used; the extension module inside is
loaded by the package's own choice of variant, and driven as its LLAMAFILE wrapper drives it.
"""

import importlib.metadata
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np

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


def run(job: dict) -> dict:
    """job: model, tensors {gate, up, down: (offset, bytes)}, experts, used, hidden, intermediate,
    threads, tokens (counts), repeats."""
    ext, variant = extension()
    pool = ext.WorkerPoolConfig()
    pool.subpool_count, pool.subpool_numa_map = 1, [0]
    pool.subpool_thread_count = [job["threads"]]
    cpu = ext.CPUInfer(pool)
    shape = (job["experts"], job["used"], job["hidden"], job["intermediate"])
    config = ext.moe.MOEConfig(*shape)
    config.layer_idx, config.pool = 0, cpu.backend_
    config.m_block, config.group_min_len = 32, 10
    config.max_len = config.group_max_len = max(job["tokens"])
    # It reads these where they are: they must outlive the layer.
    weights = {name: read(job, name) for name in ("gate", "up", "down")}
    config.swiglu_limit = config.swiglu_alpha = 0.0
    config.gate_proj, config.up_proj = address(weights["gate"]), address(weights["up"])
    config.down_proj = address(weights["down"])
    kinds = ext.kvcache.ggml_type
    config.gate_type = config.up_type = int(kinds(Q4_K))
    config.down_type, config.hidden_type = int(kinds(Q6_K)), int(kinds(BF16))
    moe = ext.moe.MOE(config)
    order = np.arange(job["experts"], dtype=np.int32)
    cpu.submit(moe.load_weights_task(address(order)))
    cpu.sync()

    rng = np.random.default_rng(7)
    seconds: dict[str, list[float]] = {}
    for count in job["tokens"]:
        x = rng.standard_normal((count, job["hidden"]), np.float32)
        x = (x.view(np.uint32) >> 16).astype(np.uint16)  # bf16
        out, size = np.zeros_like(x), np.array([count], np.int32)
        share = np.full((count, job["used"]), 1.0 / job["used"], np.float32)
        times = []
        for _ in range(job["repeats"] if count > 1 else 20 * job["repeats"]):
            ids = np.argsort(rng.random((count, job["experts"])), axis=1)
            ids = np.ascontiguousarray(ids[:, : job["used"]], np.int64)
            start = time.perf_counter()
            pointers = [address(array) for array in (ids, share, x, out)]
            cpu.submit(moe.forward_task(address(size), job["used"], *pointers, False))
            cpu.sync()
            times.append(time.perf_counter() - start)
        seconds[str(count)] = times
    version = importlib.metadata.version("kt-kernel")
    return {"engine": f"kt-kernel {version} LLAMAFILE {variant}", "seconds": seconds}


if __name__ == "__main__":
    try:
        outcome = run(json.load(sys.stdin))
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    print()
    print(json.dumps(outcome), flush=True)
