"""Products of many rows: from how many rows on dequantising first pays, and the dense product
against torch. What the first says of a card goes to csrc/cuda/model/dense.h (kDenseRows)."""

import torch

from bench.cuda.card import Card, nmse
from bench.cuda.products import NMSE, Gemv

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
    return found
