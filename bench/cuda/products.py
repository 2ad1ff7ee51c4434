"""Products on quantised weights: int4 against torch's bf16, GGUF types against copy bandwidth."""

import ctypes

import torch

from bench.cuda.card import Card, nmse

NMSE = 5e-5
GROUP = 128
MUST_INT4 = {  # (n, k): {batch: times torch}
    (28672, 8192): {1: 3.3, 4: 3.3, 8: 3.3, 16: 3.3, 64: 1.8, 256: 0.8},
    (8192, 8192): {1: 2.8, 16: 2.8, 64: 1.8, 256: 0.8},
}
GGUF_TYPES = {"q4_k": 12, "q6_k": 14, "q8_0": 8}
MUST_GEMV = 0.75  # of copy bandwidth
SAMPLE_ROWS = 512  # rows that are quantised; a matrix repeats them


def int4_matrix(card: Card, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed weights [bytes], scales [k / 128, n / 64, 64] bf16) of random rows, repeated."""
    rows = min(n, SAMPLE_ROWS)
    values = torch.randn(rows, k, generator=torch.Generator().manual_seed(1)) * 0.05
    weights = torch.empty(rows * k // 2, dtype=torch.uint8)
    scales = torch.empty(k // GROUP, rows // 64, 64, dtype=torch.bfloat16)
    card.library.call("int4_pack", values, rows, k, GROUP, 1, 1, weights, scales, None)
    times = n // rows
    return card.put(weights.repeat(times)), card.put(scales.repeat(1, times, 1))


class Int4:
    """The product of one matrix with a batch."""

    def __init__(self, card: Card, m: int, n: int, k: int) -> None:
        self.card, self.shape = card, (m, n, k)
        self.nbytes = n * k // 2 + n * k // GROUP * 2
        workspace, counters = ctypes.c_size_t(), ctypes.c_int()
        sizes = (m, n, k, GROUP, 1, card.sms, card.arch)
        card.library.call("int4_sizes", *sizes, ctypes.byref(workspace), ctypes.byref(counters))
        self.workspace = card.zeros(max(1, workspace.value), dtype=torch.uint8)
        self.counters = card.zeros(max(1, counters.value), dtype=torch.int32)
        self.x = card.put(torch.randn(m, k).to(torch.bfloat16))
        self.y = card.zeros(m, n, dtype=torch.bfloat16)

    def launch(self, weights: torch.Tensor, scales: torch.Tensor) -> None:
        self.card.library.call(
            "int4_gemm", self.x, weights, scales, None, self.y, self.workspace, self.counters,
            *self.shape, GROUP, 1, self.card.sms, self.card.arch, self.card.stream(),
        )  # fmt: skip

    def expected(self, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The same on weights read back out of their order (csrc/cuda/int4_gemm/pack.h)."""
        _, n, k = self.shape
        lanes = weights.to(torch.int32).view(n // 64, k // 16, 32, 4, 4)  # bytes of a word
        codes = torch.stack([lanes & 15, lanes >> 4], -1).flatten(-2)  # [..., word, code]
        dense = torch.empty(n // 64, 64, k // 16, 16, device=weights.device)
        lane = torch.arange(32, device=weights.device)
        for word in range(4):
            for code in range(8):
                column = 16 * word + 8 * (code in (2, 6, 3, 7)) + lane // 4
                depth = {0: 0, 4: 1, 1: 8, 5: 9, 2: 0, 6: 1, 3: 8, 7: 9}[code] + 2 * (lane % 4)
                dense[:, column, :, depth] = codes[..., word, code].permute(2, 0, 1).float() - 8
        by_column = scales.view(k // GROUP, n // 64, 8, 8).transpose(2, 3).reshape(-1, n).float()
        matrix = dense.view(n, k // GROUP, GROUP) * by_column.t()[..., None]
        # The kernel rounds code times scale to bf16, as a bf16 checkpoint would have it.
        return self.x.float() @ matrix.to(torch.bfloat16).float().view(n, k).t()


def int4_rows(card: Card) -> list[dict]:
    rows = []
    shapes = {(256, 256): dict.fromkeys((1, 17))} if card.emulated else MUST_INT4
    for (n, k), musts in shapes.items():
        first = int4_matrix(card, n, k)
        copies = card.copies(n * k // 2)
        matrices = [first] + [tuple(t.clone() for t in first) for _ in range(copies - 1)]
        dense = [
            card.put(torch.randn(n, k, dtype=torch.bfloat16))
            for _ in range(min(copies, card.copies(2 * n * k)))
        ]
        for m, must in musts.items():
            product = Int4(card, m, n, k)
            product.launch(*first)
            error = nmse(product.y, product.expected(*first))
            ours = card.seconds([lambda w=w, p=product: p.launch(*w) for w in matrices])
            out = card.zeros(m, n, dtype=torch.bfloat16)
            torch_seconds = card.seconds(
                [lambda w=w, p=product, o=out: torch.mm(p.x, w.t(), out=o) for w in dense]
            )
            rows.append({
                "work": f"int4 g128 {n} x {k}, batch {m}", "us": ours * 1e6,
                "against": "torch bf16", "against_us": torch_seconds * 1e6,
                "GB/s": product.nbytes / ours / 1e9, "ratio": torch_seconds / ours, "must": must,
                "nmse": error, "right": error <= NMSE,
            })  # fmt: skip
    return rows


class Gemv:
    """y = x W^T on R16 records of a GGUF type."""

    def __init__(self, card: Card, m: int, n: int, k: int, gguf_id: int) -> None:
        self.card, self.shape, self.gguf_id = card, (m, n, k), gguf_id
        tiles = -(-m // 8)
        self.tiles = tiles
        self.x = card.put(torch.randn(m, k))
        self.fragments = card.zeros(tiles * k * 8, dtype=torch.float16)
        self.sums = card.zeros(tiles * k // 16 * 8, dtype=torch.float32)
        self.scales = card.zeros(tiles * 8, dtype=torch.float32)
        self.y = card.zeros(tiles * 8, n, dtype=torch.float32)

    def weights(self) -> torch.Tensor:
        """Records of random rows, repeated."""
        _, n, k = self.shape
        rows, nbytes = min(n, SAMPLE_ROWS), ctypes.c_size_t()
        values = torch.randn(rows, k, generator=torch.Generator().manual_seed(2)) * 0.05
        call = self.card.library.call
        call("gemv_weights", values, rows, k, self.gguf_id, 1, None, ctypes.byref(nbytes))
        records = torch.empty(nbytes.value, dtype=torch.uint8)
        call("gemv_weights", values, rows, k, self.gguf_id, 1, records, ctypes.byref(nbytes))
        return self.card.put(records.repeat(n // rows))

    def item(self, weights: torch.Tensor) -> torch.Tensor:
        host = torch.empty(self.card.library.value("gemv_item_bytes"), dtype=torch.uint8)
        self.card.library.call("gemv_item", host, weights, None, 0, self.tiles)
        return self.card.put(host)

    def prepare(self) -> None:
        m, _, k = self.shape
        self.card.library.call(
            "prepare", self.x, 0, m, k, self.tiles, self.fragments, self.sums, self.scales,
            self.card.stream(),
        )  # fmt: skip

    def launch(self, item: torch.Tensor) -> None:
        _, n, k = self.shape
        self.card.library.call(
            "quant_gemv", item, 1, self.tiles, self.fragments, self.sums, self.scales, self.y, n, k,
            self.gguf_id, 0, self.card.sms, self.card.arch, self.card.stream(),
        )  # fmt: skip

    def expected(self, weights: torch.Tensor) -> torch.Tensor:
        _, n, k = self.shape
        dense = self.card.zeros(n, k, dtype=torch.float16)
        self.card.library.call(
            "dequantise", weights, None, dense, n, k, self.gguf_id, 0, 0, self.card.stream()
        )
        return self.x.double() @ dense.double().t()


def gemv_rows(card: Card, copy_gbps: float) -> list[dict]:
    n, k = (512, 512) if card.emulated else (18432, 7168)  # 70 MB and more
    rows = []
    for name, gguf_id in GGUF_TYPES.items():
        for m in (1, 4):
            product = Gemv(card, m, n, k, gguf_id)
            first = product.weights()
            copies = card.copies(first.numel())
            matrices = [first] + [first.clone() for _ in range(copies - 1)]
            items = [product.item(w) for w in matrices]
            product.prepare()
            product.launch(items[0])
            error = nmse(product.y[:m], product.expected(first))
            seconds = card.seconds([lambda i=i, p=product: p.launch(i) for i in items])
            rate = first.numel() / seconds / 1e9
            rows.append({
                "work": f"{name} R16 {n} x {k}, batch {m}", "us": seconds * 1e6,
                "against": "copy bandwidth", "GB/s": rate, "ratio": rate / copy_gbps,
                "must": MUST_GEMV if m == 1 else None, "nmse": error, "right": error <= NMSE,
            })  # fmt: skip
            del matrices, items
    return rows
