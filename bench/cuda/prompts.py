"""Products of many rows: from how many rows on dequantising first pays, and the dense product
against torch. What the first says of a card goes to csrc/cuda/model/dense.h (kDenseRows)."""

import ctypes

import torch

from bench.cuda.card import Card, nmse
from bench.cuda.products import GROUP, NMSE, SAMPLE_ROWS, Gemv

ROWS = (32, 64, 128, 256, 512, 2048)
Q4_K = 12


class Dense(Gemv):
    """The same product by dequantising into a scratch and multiplying as f16."""

    def __init__(self, card: Card, m: int, n: int, k: int, gguf_id: int) -> None:
        super().__init__(card, m, n, k, gguf_id)
        self.half = card.put(self.x.to(torch.float16))
        self.scratch = card.zeros(n, k, dtype=torch.float16)
        self.out = card.zeros(m, n, dtype=torch.float32)

    def launch_dense(self, weights: torch.Tensor) -> None:
        m, n, k = self.shape
        call, stream = self.card.library.call, self.card.stream()
        call("dequantise", weights, None, self.scratch, n, k, self.gguf_id, 0, 0, stream)
        self.multiply()

    def multiply(self) -> None:
        m, n, k = self.shape
        self.card.library.call(
            "dense_gemm", self.half, self.scratch, self.out, m, n, k, 0, 1, self.card.stream()
        )


class DenseInt4:
    """An int4 product in f16, by its own kernel and by dequantising first."""

    def __init__(self, card: Card, m: int, n: int, k: int) -> None:
        self.card, self.shape = card, (m, n, k)
        rows = min(n, SAMPLE_ROWS)  # which the matrix repeats
        values = torch.randn(rows, k, generator=torch.Generator().manual_seed(1)) * 0.05
        strips = -(-rows // 64)
        weights = torch.empty(strips * 64 * k // 2, dtype=torch.uint8)
        scales = torch.empty(k // GROUP, strips, 64, dtype=torch.float16)
        card.library.call("int4_pack", values, rows, k, GROUP, 1, 0, weights, scales, None)
        self.weights = card.put(weights.repeat(n // rows))
        self.scales = card.put(scales.repeat(1, n // rows, 1))
        self.x = card.put(torch.randn(m, k).to(torch.float16))
        workspace, counters = ctypes.c_size_t(), ctypes.c_int()
        sizes = (m, n, k, GROUP, 0, card.sms, card.arch)
        card.library.call("int4_sizes", *sizes, ctypes.byref(workspace), ctypes.byref(counters))
        self.workspace = card.zeros(max(1, workspace.value), dtype=torch.uint8)
        self.counters = card.zeros(max(1, counters.value), dtype=torch.int32)
        self.scratch = card.zeros(n, k, dtype=torch.float16)
        self.out = card.zeros(m, n, dtype=torch.float16)

    def int4(self, weights: torch.Tensor) -> None:
        self.card.library.call(
            "int4_gemm", self.x, weights, self.scales, None, self.out, self.workspace,
            self.counters, *self.shape, GROUP, 0, self.card.sms, self.card.arch,
            self.card.stream(),
        )  # fmt: skip

    def dense(self, weights: torch.Tensor) -> None:
        m, n, k = self.shape
        call, stream = self.card.library.call, self.card.stream()
        call("dequantise_int4", weights, self.scales, None, self.scratch, n, k, GROUP, stream)
        call("dense_gemm", self.x, self.scratch, self.out, m, n, k, 0, 0, stream)

    def expected(self) -> torch.Tensor:
        return self.x.float() @ self.scratch.float().t()


def int4_rows(card: Card) -> list[dict]:
    """Where kMostInt4Rows (csrc/cuda/model/dense.h) should be."""
    n, k = (136, 256) if card.emulated else (18432, 7168)
    found = []
    for m in (3, 17) if card.emulated else (128, 256, 512):
        product = DenseInt4(card, m, n, k)
        first = product.weights
        matrices = [first] + [first.clone() for _ in range(card.copies(first.numel()) - 1)]
        dense = card.seconds([lambda w=w, p=product: p.dense(w) for w in matrices])
        error = nmse(product.out, product.expected())
        int4 = card.seconds([lambda w=w, p=product: p.int4(w) for w in matrices])
        error = max(error, nmse(product.out, product.expected()))
        found.append({
            "work": f"int4 g128 {n} x {k}, {m} rows, dequantised first", "us": dense * 1e6,
            "against": "the int4 kernel", "against_us": int4 * 1e6, "ratio": int4 / dense,
            "must": None, "nmse": error, "right": error <= NMSE,
        })  # fmt: skip
    return found


def rows(card: Card) -> list[dict]:
    n, k = (130, 256) if card.emulated else (18432, 7168)
    found = []
    for m in (3, 9) if card.emulated else ROWS:
        product = Dense(card, m, n, k, Q4_K)
        first = product.weights()
        matrices = [first] + [first.clone() for _ in range(card.copies(first.numel()) - 1)]
        items = [product.item(w) for w in matrices]
        product.prepare()
        product.launch_dense(first)
        error = nmse(product.out, product.expected(first))
        few = card.seconds([lambda i=i, p=product: p.launch(i) for i in items])
        many = card.seconds([lambda w=w, p=product: p.launch_dense(w) for w in matrices])
        found.append({
            "work": f"q4_k {n} x {k}, {m} rows, dequantised first", "us": many * 1e6,
            "against": "kernels of few rows", "against_us": few * 1e6, "ratio": few / many,
            "must": None, "nmse": error, "right": error <= NMSE,
        })  # fmt: skip
    ours = card.seconds([product.multiply] * 4)
    right, out = product.scratch.t(), card.zeros(m, n, dtype=torch.float16)
    theirs = card.seconds([lambda: torch.mm(product.half, right, out=out)] * 4)
    found.append({
        "work": f"f16 {n} x {k}, {m} rows", "us": ours * 1e6, "against": "torch f16",
        "against_us": theirs * 1e6, "ratio": theirs / ours, "must": None, "nmse": error,
        "right": error <= NMSE,
    })  # fmt: skip
    return found + int4_rows(card)
