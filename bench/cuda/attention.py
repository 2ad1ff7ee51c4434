"""Absorbed latent attention (MLA) of generated tokens, against copy bandwidth and tensor cores."""

import ctypes

import torch

from bench.cuda.card import Card, nmse

NMSE = 5e-5
LATENT, ROPE, PAGE = 512, 64, 64
MUSTS = {  # (heads, batch, context, FP8): fraction
    (16, 1, 32768, False): 0.70,
    (16, 4, 8192, False): None,
    (16, 1, 32768, True): None,
    (128, 1, 32768, False): 0.50,
    (128, 4, 8192, False): None,
    (128, 1, 32768, True): None,
}
BIAS = 127  # of the exponents of an FP8 cache


class MlaDecode:
    """One token of each of `batch` sequences over a paged cache of bf16, or of FP8 latents with a
    power of two per position and their rotated part in bf16."""

    def __init__(
        self, card: Card, heads: int, batch: int, length: int, caches: int, fp8: bool
    ) -> None:
        self.card, self.heads, self.batch, self.length = card, heads, batch, length
        pages = -(-length // PAGE)
        self.pages_each = pages
        make = torch.Generator().manual_seed(3)
        self.fp8 = fp8
        one = torch.randn(batch * pages, PAGE, LATENT + ROPE, generator=make)
        parts = [one.to(torch.bfloat16)]
        if fp8:
            exponents = torch.randint(BIAS - 8, BIAS - 5, one.shape[:2], generator=make)
            latents = one[..., :LATENT] * 2.0 ** (BIAS - exponents)[..., None]
            rope = one[..., LATENT:].to(torch.bfloat16).contiguous()
            latents = latents.to(torch.float8_e4m3fn).view(torch.uint8)
            parts = [latents, rope, exponents.to(torch.uint8)]
        first = [card.put(part) for part in parts]
        self.caches = [first] + [[part.clone() for part in first] for _ in range(caches - 1)]
        q = torch.randn(batch, heads, LATENT + ROPE, generator=make)
        self.q = card.put(q.to(torch.bfloat16))
        self.out = card.zeros(batch, heads, LATENT, dtype=torch.bfloat16)
        self.first_token = card.put(torch.arange(batch + 1, dtype=torch.int32))
        self.kv_length = card.put(torch.full((batch,), length, dtype=torch.int32))
        order = torch.randperm(batch * pages, generator=make).to(torch.int32)
        self.pages = card.put(order.view(batch, pages))
        self.scale = (128 + ROPE) ** -0.5
        nbytes = ctypes.c_size_t()
        self._call(first, None, ctypes.byref(nbytes))
        self.workspace = card.zeros(max(1, nbytes.value), dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        return self.batch * self.length * position_bytes(self.fp8)

    @property
    def operations(self) -> int:
        return 2 * self.batch * self.length * self.heads * (2 * LATENT + ROPE)

    def _call(self, cache: list[torch.Tensor], workspace, nbytes) -> None:
        rope, exponents = cache[1:] if self.fp8 else (None, None)
        self.card.library.call(
            "flash", self.q, cache[0], None, self.out, self.first_token, self.kv_length, self.pages,
            workspace, nbytes, self.batch, 1, self.batch, self.heads, 1, LATENT + ROPE, LATENT,
            self.pages_each, self.length, self.scale, 1, rope, exponents, None,
            self.card.sms, self.card.arch, self.card.stream(),
        )  # fmt: skip

    def launch(self, cache: list[torch.Tensor]) -> None:
        self._call(cache, self.workspace, None)

    def expected(self) -> torch.Tensor:
        rows = []
        parts = [part.cpu() for part in self.caches[0]]
        cache = parts[0].float()
        if self.fp8:
            factor = 2.0 ** (parts[2].float() - BIAS)
            latents = parts[0].view(torch.float8_e4m3fn).float() * factor[..., None]
            cache = torch.cat([latents, parts[1].float()], -1)
        cache = cache.to(self.q.device)
        for i in range(self.batch):
            keys = cache[self.pages[i].long()].reshape(-1, LATENT + ROPE)[: self.length]
            weights = torch.softmax(self.q[i].float() @ keys.t() * self.scale, -1)
            rows.append(weights @ keys[:, :LATENT])
        return torch.stack(rows)


def position_bytes(fp8: bool) -> int:
    return LATENT + 2 * ROPE + 1 if fp8 else 2 * (LATENT + ROPE)


def rows(card: Card, limits: dict) -> list[dict]:
    shapes = {(16, 2, 300, False): None, (16, 1, 130, True): None} if card.emulated else MUSTS
    found = []
    for (heads, batch, length, fp8), must in shapes.items():
        copies = card.copies(batch * length * position_bytes(fp8))
        work = MlaDecode(card, heads, batch, length, copies, fp8)
        work.launch(work.caches[0])
        error = nmse(work.out, work.expected())
        seconds = card.seconds([lambda c=c, w=work: w.launch(c) for c in work.caches])
        by_memory = work.nbytes / (limits["copy_gbps"] * 1e9)
        by_cores = work.operations / (limits["bf16_tflops"] * 1e12)
        found.append({
            "work": f"MLA decode, {heads} heads, batch {batch}, {length} positions"
            + (", FP8 cache" if fp8 else ""),
            "us": seconds * 1e6, "GB/s": work.nbytes / seconds / 1e9,
            "against": "bf16 peak" if by_cores > by_memory else "copy bandwidth",
            "ratio": max(by_memory, by_cores) / seconds, "must": must,
            "nmse": error, "right": error <= NMSE,
        })  # fmt: skip
    return found
