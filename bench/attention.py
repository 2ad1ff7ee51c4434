"""Attention by itself: what arithmetic and cache cost, and when MLA's keys are worth expanding.

    python -m bench.attention                      generated tokens, prompts, MLA's two forms
    python -m bench.attention --only decode        one of the tables
    python -m bench.attention --contexts 8192      at one length

The operators of full width, with a hidden size so small that their projections do not count. A
generated token is held against the bytes of keys and values at the read bandwidth, a prompt against
its operations at the bf16 peak, both measured in the same run.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np

from bench import limits, report

HIDDEN = 64
EXACT, DIGIT = 1, 2  # how rows are rounded: generated, of a prompt
TABLES = ("decode", "prompt", "mla")
CACHES = ("i16", "f16", "q8_0")


@dataclass(frozen=True)
class Gqa:
    """heads query heads over kv_heads key heads of `dim` values."""

    name: str
    heads: int
    kv_heads: int
    dim: int

    def op(self, context, rng):
        from ktransformers import _core

        def matrix(rows: int, cols: int):
            values = rng.standard_normal((rows, cols), np.float32) / cols**0.5
            return _core.Linear(_core.Matrix(context, values, "f32", rows, cols, "w"))

        width, kv = self.heads * self.dim, self.kv_heads * self.dim
        turns = (1e4 ** (-np.arange(self.dim // 2) * 2 / self.dim)).astype(np.float32)
        return _core.GqaAttention(
            matrix(width, HIDDEN), matrix(kv, HIDDEN), matrix(kv, HIDDEN), matrix(HIDDEN, width),
            _core.Rope(turns), num_heads=self.heads, num_kv_heads=self.kv_heads,
            head_dim=self.dim, scale=self.dim**-0.5,
        )  # fmt: skip

    def ops(self, positions: float) -> float:
        """Of queries that see so many positions in all."""
        return 4.0 * self.heads * self.dim * positions


MODELS = (Gqa("Qwen3-30B-A3B", 32, 4, 128), Gqa("Mixtral", 32, 8, 128), Gqa("SmolLM2", 9, 3, 64))


def mla(context, rng, expand: str):
    """DeepSeek-V3's: 128 heads of 128 + 64 values over a latent of 512."""
    from ktransformers import _core

    heads, nope, rope, v, latent = 128, 128, 64, 128, 512

    def matrix(rows: int, cols: int, kind: str = "f32"):
        values = rng.standard_normal((rows, cols), np.float32) / cols**0.5
        blocks = values if kind == "f32" else _core.quantize(values, kind)
        return _core.Linear(_core.Matrix(context, blocks, kind, rows, cols, "w"))

    turns = (1e4 ** (-np.arange(rope // 2) * 2 / rope)).astype(np.float32)
    return _core.MlaAttention(
        kv_a=matrix(latent + rope, HIDDEN),
        kv_a_norm=_core.RmsNorm(np.ones(latent, np.float32), 1e-6),
        o=matrix(HIDDEN, heads * v), rope=_core.Rope(turns, interleaved=True), num_heads=heads,
        kv_lora_rank=latent, qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=v,
        scale=(nope + rope) ** -0.5, q=matrix(heads * (nope + rope), HIDDEN),
        kv_b=matrix(heads * (nope + v), latent, "q8_0"), expand=expand,
    )  # fmt: skip


class Bench:
    """One operator with a cache of `length` random positions."""

    def __init__(self, context, op, cache: str, length: int, rng):
        from ktransformers import _core

        self.context, self.op, self.length, self.rng = context, op, length, rng
        pool = _core.KvPool([op.kv_widths], cache, cache, length)
        self.bytes_per_position = pool.bytes_per_position
        self.sequence = pool.make_sequence()
        self.sequence.extend(length)
        k, v, _ = op.kv_widths
        for begin in range(0, length, 512):
            count = min(512, length - begin)
            keys = rng.standard_normal((count, k), np.float32)
            values = rng.standard_normal((count, v), np.float32)
            self.sequence.write(0, begin, keys, values)

    def seconds(self, rows: int, mark: int, repeats: int) -> float:
        """The last `rows` positions anew; the best of the repeats."""
        x = self.rng.standard_normal((rows, HIDDEN), np.float32)
        position = np.arange(self.length - rows, self.length, dtype=np.int32)
        which, marks = np.zeros(rows, np.int32), np.full(rows, mark, np.uint8)
        best = np.inf
        for _ in range(repeats):
            start = time.perf_counter()
            self.op.forward(self.context, x, position, which, marks, [self.sequence], 0)
            best = min(best, time.perf_counter() - start)
        return best


def decode(context, contexts, machine) -> list[dict]:
    rows = []
    for model in MODELS:
        for cache in CACHES:
            for length in contexts:
                rng = np.random.default_rng(1)
                bench = Bench(context, model.op(context, rng), cache, length, rng)
                seconds = bench.seconds(1, EXACT, 12)
                nbytes = bench.bytes_per_position * length
                rows.append({
                    "model": model.name, "cache": cache, "context": length, "ms": seconds * 1e3,
                    "GB/s": nbytes / seconds / 1e9,
                    "of read": nbytes / seconds / 1e9 / machine["read_gbps"],
                    "GOPS": model.ops(length) / seconds / 1e9,
                })  # fmt: skip
    return rows


def prompt(context, contexts, machine) -> list[dict]:
    rows = []
    for model in MODELS:
        for cache in CACHES:
            for length in contexts:
                rng = np.random.default_rng(1)
                bench = Bench(context, model.op(context, rng), cache, length, rng)
                count = min(512, length)
                seconds = bench.seconds(count, DIGIT, 2)
                ops = model.ops(count * (length - (count - 1) / 2))
                rows.append({
                    "model": model.name, "cache": cache, "context": length, "rows": count,
                    "ms": seconds * 1e3, "GOPS": ops / seconds / 1e9,
                    "of bf16": ops / seconds / 1e12 / machine["bf16_tflops"],
                })  # fmt: skip
    return rows


def forms(context, contexts, _) -> list[dict]:
    """MLA's two forms for prompts of so many rows: where expanding begins to pay."""
    rows = []
    for length in contexts:
        for count in (1, 16, 32, 64, 128, 256, 512):
            if count > length:
                continue
            row: dict = {"context": length, "rows": count}
            for name, expand in (("absorbed", "never"), ("expanded", "always")):
                if name == "expanded" and count < 16:
                    continue
                rng = np.random.default_rng(1)
                bench = Bench(context, mla(context, rng, expand), "f16", length, rng)
                row[f"{name} ms"] = bench.seconds(count, DIGIT, 2) * 1e3
            if "expanded ms" in row:
                row["absorbed / expanded"] = row["absorbed ms"] / row["expanded ms"]
            rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.attention", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default=",".join(TABLES))
    parser.add_argument("--contexts", default="512,2048,8192,32768")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(argv)
    from ktransformers import _core

    context = _core.Context(options.threads)
    machine = limits.measure(context=context)
    print(report.header())
    print(limits.line(machine), flush=True)
    contexts = [int(length) for length in options.contexts.split(",")]
    results: dict = {"limits": machine}
    for name in options.only.split(","):
        make = {"decode": decode, "prompt": prompt, "mla": forms}[name]
        chosen = [length for length in contexts if name != "mla" or length <= 8192]
        results[name] = make(context, chosen, machine)
        columns = list(results[name][-1])
        print(f"\n{name}")
        print(report.table(columns, [[row.get(c) for c in columns] for row in results[name]]))
    path = report.write_json("attention", results)
    print(f"figures in {path.relative_to(report.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
