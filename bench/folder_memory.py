"""Memory of loading Hugging Face folders, beside what was promised: the result and one layer.

    python -m bench.folder_memory [--layers 4]

A synthetic Qwen3-MoE folder is written in BF16 and in FP8 (blocks of 128 x 128) and loaded in a
process of its own as q8_0 and as q4_k; in int4 codes (compressed-tensors, groups of 32) it is
loaded as it is. The peak is the largest anonymous memory the kernel reports
for that process, sampled every few milliseconds, less what it held before the load; pages of the
folder's files are not in it. The promise: the weights as loaded, the cache, the experts of one
layer once more, and what any load takes (MARGIN). Status 1 where a promise is broken.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import report

MARGIN = 112 << 20  # what any load takes: scratch for 512 rows, tokenizer, allocator (102 MB here)
EXPERTS, WIDTH, HIDDEN = 32, 768, 1024
COLUMNS = "folder loaded_as stored_GB result_GB peak_GB promised_GB seconds verdict".split()


def config(layers: int, vocabulary: int) -> dict:
    return {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": 2048,
        "moe_intermediate_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 64, "num_experts": EXPERTS, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
        "rope_theta": 1e6, "tie_word_embeddings": False, "hidden_act": "silu",
        "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": False,
    }  # fmt: skip


def shapes(layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN), "lm_head.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }  # fmt: skip
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}{name}.weight"] = (HIDDEN,)
        for name, rows in (("q", 1024), ("k", 256), ("v", 256)):
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        found[f"{at}self_attn.o_proj.weight"] = (HIDDEN, 1024)
        for name in ("q_norm", "k_norm"):
            found[f"{at}self_attn.{name}.weight"] = (64,)
        found[f"{at}mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for name in ("gate", "up"):
                found[f"{at}mlp.experts.{expert}.{name}_proj.weight"] = (WIDTH, HIDDEN)
            found[f"{at}mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, WIDTH)
    return found


# quantization_config of folders that are not BF16, and how a projection is stored in them: tensors
# as (suffix of the name, type, values per stored one in rows and columns, bytes of each); () is the
# matrix's shape.
FORMS: dict[str, dict] = {
    "BF16": {},
    "FP8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "int4": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32,
            "symmetric": True}}},
    },
}  # fmt: skip
PARTS = {
    "FP8": (("weight", "F8_E4M3", (1, 1), 1), ("weight_scale_inv", "F32", (128, 128), 4)),
    "int4": (
        ("weight_packed", "I32", (1, 8), 4),
        ("weight_scale", "BF16", (1, 32), 2),
        ("weight_shape", "I64", (), 8),
    ),
}
LOADED = {"BF16": ("q8_0", "q4_k"), "FP8": ("q8_0", "q4_k"), "int4": ("file",)}


def write_folder(path: Path, layers: int, form: str) -> int:
    """Bytes of the weights written: normal values of a trained model's spread, or any codes."""
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.checkpoint.tokenizer import build_tokenizer
    from tests.support import vocabulary
    from tests.support.miniatures import miniature, write

    path.mkdir()
    source = write(miniature("qwen3moe", types="BF16"), path.parent / "words.gguf")
    build_tokenizer(open_model(source)).save_pretrained(path)
    values = config(layers, vocabulary.SIZE)
    if FORMS[form]:
        values["quantization_config"] = FORMS[form]
    (path / "config.json").write_text(json.dumps(values))
    header, pieces, offset = {}, [], 0
    for name, shape in shapes(layers, vocabulary.SIZE).items():
        parts = PARTS.get(form) if "_proj" in name else None
        for suffix, kind, by, each in parts or (("weight", "BF16", (1,) * len(shape), 2),):
            tensor = name.removesuffix("weight") + suffix
            size = tuple(-(-n // every) for n, every in zip(shape, by, strict=True)) if by else (2,)
            count = int(np.prod(size)) * each
            header[tensor] = {
                "dtype": kind,
                "shape": size,
                "data_offsets": [offset, offset + count],
            }
            pieces.append((tensor, kind, size, shape))
            offset += count
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in contents(pieces):
            file.write(data.numpy().tobytes())
    return offset


def contents(pieces: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]) -> Iterator[Any]:
    """What each (name, type, shape, shape of the matrix) holds: tensors to write the bytes of."""
    import torch

    generator = torch.Generator().manual_seed(3)
    for tensor, kind, size, shape in pieces:
        if kind == "F32":
            yield torch.full(size, 0.02 / 100)
        elif kind == "I64":
            yield torch.tensor(shape)
        elif kind == "I32":
            yield torch.randint(-(1 << 31), 1 << 31, size, generator=generator, dtype=torch.int32)
        elif "norm" in tensor:
            yield torch.ones(size).bfloat16().view(torch.uint8)
        elif "scale" in tensor:  # codes are even over 16 values: 4.6 of them
            yield torch.full(size, 0.02 / 4.6).bfloat16().view(torch.uint8)
        elif kind == "F8_E4M3":
            data = torch.randn(size, generator=generator).mul_(100).to(torch.float8_e4m3fn)
            yield data.view(torch.uint8)
        else:
            yield torch.randn(size, generator=generator).mul_(0.02).bfloat16().view(torch.uint8)


LOAD = r"""
import json, sys
from ktransformers.optimize.system import own_memory
import torch, transformers
from ktransformers.runtime.loading import load_model
from ktransformers import _core
print(json.dumps({"before": own_memory()}), flush=True)
sys.stdin.readline()
model = load_model(sys.argv[1], optimize_config_path=sys.argv[2], cache_lens=1024)
plan, pool = model.kt.plan, model.kt.engine
experts = [row.nbytes for row in plan.rows if row.kind == "moe.experts"]
print(json.dumps({"result": sum(plan.device_bytes().values()), "layer": max(experts),
                  "cache": pool.kv.bytes_per_position * pool.cache_lens,
                  "notes": plan.notes}), flush=True)
"""


def measure(folder: Path, rules: Path) -> dict:
    """The process's own figures and its peak, bytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, str(folder), str(rules)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, cwd=report.ROOT,
    )  # fmt: skip
    before = json.loads(process.stdout.readline())["before"]
    status = Path(f"/proc/{process.pid}/status")
    start, peak = time.monotonic(), 0
    process.stdin.write("\n")
    process.stdin.flush()
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.003)
    if process.returncode:
        raise RuntimeError(f"loading {folder} ended with {process.returncode}")
    found = json.loads(process.stdout.read().splitlines()[-1])
    return found | {"peak": peak - before, "seconds": time.monotonic() - start}


def rules_for(quant: str, path: Path) -> Path:
    text = (report.ROOT / "optimize_rules" / "qwen3moe.yaml").read_text()
    for operator in ("linear", "embedding", "moe.experts"):
        plain = f"operator: {operator}, backend: cpu"
        text = text.replace(plain + "}", plain + f", options: {{quant: {quant}}}}}")
    path.write_text(text)
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.folder_memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--layers", type=int, default=4)
    layers = parser.parse_args(argv).layers
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, types in LOADED.items():
            folder = Path(place) / name
            stored = write_folder(folder, layers, name)
            for quant in types:
                found = measure(folder, rules_for(quant, Path(place) / "rules.yaml"))
                promised = found["result"] + found["cache"] + found["layer"] + MARGIN
                rows.append(
                    {"folder": name, "loaded_as": quant, "stored_GB": stored / 1e9,
                     "result_GB": found["result"] / 1e9, "peak_GB": found["peak"] / 1e9,
                     "promised_GB": promised / 1e9, "seconds": found["seconds"],
                     "verdict": "ok" if found["peak"] <= promised else "FAIL"}
                )  # fmt: skip
    print(report.table(COLUMNS, [[row[c] for c in COLUMNS] for row in rows]))
    report.write_json("folder_memory", {"rows": rows})
    return 1 if any(row["verdict"] == "FAIL" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
