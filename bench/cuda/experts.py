"""Experts on the card: the grouped product of those that a decode step's tokens chose, in int4 and
as R16 records of Q4_K, against copy bandwidth."""

import ctypes

import torch

from bench.cuda.card import Card, nmse
from bench.cuda.products import NMSE, SAMPLE_ROWS, Gemv

GROUP, Q4_K = 64, 12
SHAPES = ((2048, 7168), (7168, 2048))  # DeepSeek-V3: gate or up, down
CHOSEN = (8, 64)  # experts, each with one token
# Bars are of single matrices (products.py); these say what being grouped leaves of them.


class Int4Experts:
    """One tile of 8 rows for each of `count` matrices."""

    def __init__(self, card: Card, count: int, n: int, k: int) -> None:
        self.card, self.shape = card, (count, n, k)
        workspace, counters = ctypes.c_size_t(), ctypes.c_int()
        card.library.call(
            "int4_grouped_sizes", n, k, GROUP, count, card.sms, card.arch,
            ctypes.byref(workspace), ctypes.byref(counters),
        )  # fmt: skip
        self.workspace = card.zeros(max(1, workspace.value), dtype=torch.uint8)
        self.counters = card.zeros(counters.value, dtype=torch.int32)
        self.count = card.put(torch.tensor([count], dtype=torch.int32))
        self.x = card.put(torch.randn(8 * count, k).to(torch.float16))
        self.row_scales = card.put(torch.full((8 * count,), 2.0))
        self.y = card.zeros(8 * count, n, dtype=torch.float32)

    def weights(self) -> torch.Tensor:
        """[matrices, bytes]: random rows, repeated, and their scales behind them."""
        count, n, k = self.shape
        rows = min(n, SAMPLE_ROWS)
        values = torch.randn(rows, k, generator=torch.Generator().manual_seed(3)) * 0.05
        codes = torch.empty(rows * k // 2, dtype=torch.uint8)
        scales = torch.empty(k // GROUP, rows // 64, 64, dtype=torch.float16)
        self.card.library.call("int4_pack", values, rows, k, GROUP, 1, 0, codes, scales, None)
        times = n // rows
        self.parts = [self.card.put(codes.repeat(times)), self.card.put(scales.repeat(1, times, 1))]
        one = torch.cat([part.view(-1).view(torch.uint8) for part in self.parts])
        return self.card.put(one.repeat(count, 1))

    def launch(self, items: torch.Tensor) -> None:
        count, n, k = self.shape
        self.card.library.call(
            "int4_grouped", items, self.count, self.x, self.row_scales, self.y, self.workspace,
            self.counters, count, n, k, GROUP, self.card.sms, self.card.arch, self.card.stream(),
        )  # fmt: skip

    def expected(self) -> torch.Tensor:
        _, n, k = self.shape
        dense = self.card.zeros(n, k, dtype=torch.float16)
        codes, scales = self.parts
        self.card.library.call(
            "dequantise_int4", codes, scales, None, dense, n, k, GROUP, self.card.stream()
        )
        return 2 * self.x.double() @ dense.double().t()


class Q4Experts(Gemv):
    """The same of records."""

    def __init__(self, card: Card, count: int, n: int, k: int) -> None:
        super().__init__(card, 8 * count, n, k, Q4_K)
        self.count = count  # the list says which tile is whose

    def launch(self, items: torch.Tensor) -> None:
        _, n, k = self.shape
        self.card.library.call(
            "quant_gemv", items, self.count, 1, self.fragments, self.sums, self.scales, self.y, n,
            k, self.gguf_id, 0, self.card.sms, self.card.arch, self.card.stream(),
        )  # fmt: skip


def item_list(card: Card, weights: torch.Tensor) -> torch.Tensor:
    """[matrices, bytes] -> the list of products, matrix i with tile i."""
    size = card.library.value("gemv_item_bytes")
    host = torch.empty(len(weights), size, dtype=torch.uint8)
    for i, matrix in enumerate(weights):
        card.library.call("gemv_item", host[i], matrix, None, i, 1)
    return card.put(host)


def rows(card: Card, copy_gbps: float) -> list[dict]:
    found = []
    for n, k in ((128, 256),) if card.emulated else SHAPES:
        for count in (3,) if card.emulated else CHOSEN:
            int4, q4 = Int4Experts(card, count, n, k), Q4Experts(card, count, n, k)
            first, records = int4.weights(), q4.weights()
            for name, product, weights in (
                (f"int4 g{GROUP}", int4, first),
                ("q4_k R16", q4, card.put(records.repeat(count, 1))),
            ):
                others = range(card.copies(weights.numel()) - 1)
                copies = [weights] + [weights.clone() for _ in others]
                lists = [item_list(card, one) for one in copies]
                if product is q4:
                    product.prepare()
                product.launch(lists[0])
                right = int4.expected() if product is int4 else product.expected(records)
                error = nmse(product.y, right)
                seconds = card.seconds([lambda i=i, p=product: p.launch(i) for i in lists])
                rate = weights.numel() / seconds / 1e9
                found.append({
                    "work": f"experts {name}, {count} of {n} x {k}", "us": seconds * 1e6,
                    "against": "copy bandwidth", "GB/s": rate, "ratio": rate / copy_gbps,
                    "must": None, "nmse": error, "right": error <= NMSE,
                })  # fmt: skip
                del copies, lists
    return found
