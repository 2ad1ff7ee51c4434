"""What the operators of one model share: workers, arithmetic, the cache, and the rows at hand."""

from dataclasses import dataclass, field

import numpy as np

from ktransformers import _core
from ktransformers.checkpoint.weight_image import WeightStore
from ktransformers.errors import UserError
from ktransformers.operators.card import Card
from ktransformers.operators.int4 import Totals

ARITHMETIC = {
    "auto": _core.Arithmetic.AUTO,
    "exact": _core.Arithmetic.EXACT,
    "f32": _core.Arithmetic.F32,
}


def cpu_kv_type(kv_type: str | None, activations: str) -> str | None:
    """What keeps keys and values of layers on the CPU: None until a model's default is taken. "fp8"
    is for cards; the reference arithmetic keeps everything in float."""
    return (None if kv_type == "fp8" else kv_type) or ("f32" if activations == "f32" else None)


@dataclass
class Rows:
    """The rows of the forward under way, [batch * length] in module-by-module mode.

    valid: indices of rows that are no padding; position, sequence: of those rows, int32.
    rounding: uint8 per row, padding included.
    """

    rounding: np.ndarray
    valid: np.ndarray
    position: np.ndarray
    sequence: np.ndarray
    sequences: list = field(default_factory=list)


class Engine:
    """Created once per model; operators keep a reference to it.

    kv_type: the cache's type, None until one is chosen for the model; "fp8" is that of cards only,
    which otherwise keep f16.
    Raises: UserError for an arithmetic or cache type that does not exist.
    """

    def __init__(
        self, threads: int = 0, activations: str = "auto", kv_type: str | None = None,
        cache_lens: int = 8192,
    ):  # fmt: skip
        if activations not in ARITHMETIC:
            raise UserError(f"activations='{activations}': choose auto, exact or f32")
        if cache_lens < 1:
            raise UserError(f"cache_lens={cache_lens}: at least one position is needed")
        self.activations = activations
        self.arithmetic = ARITHMETIC[activations]
        self.context = _core.Context(threads)
        self.fp8_cache = kv_type == "fp8"
        self.kv_type = cpu_kv_type(kv_type, activations)
        self.cache_lens = cache_lens
        self.kv: _core.KvPool | None = None
        self.rows: Rows | None = None
        self.store = WeightStore()
        self.defer_experts = 0  # of a token, on cards whose layers wait for the CPU
        self.vram_limit = 0  # bytes of each card that may be taken; 0: what is free
        self.pin_left: int | None = None  # bytes of experts in RAM that cards may pin; None: all
        self.unpinned_because = ""  # why none may be, where that is not the user's limit
        self._cards: dict[str, Card] = {}
        self.int4 = Totals()  # of what cards have in int4

    def card(self, device: str) -> Card:
        """The card "cuda:N", opened when it is first asked for. Raises: UserError."""
        if device not in self._cards:
            self._cards[device] = Card(device, self.vram_limit)
        return self._cards[device]

    @property
    def k_type(self) -> str:
        return (self.kv_type or "f16").partition("+")[0]

    @property
    def v_type(self) -> str:
        return (self.kv_type or "f16").rpartition("+")[2]

    @property
    def cache_text(self) -> str:
        """What keeps keys and values of layers on the CPU, as in "f16+q8_0"."""
        return "+".join(dict.fromkeys((self.k_type, self.v_type)))

    def make_pool(self, widths: list[tuple[int, int, int]]) -> None:
        """The cache of all sequences; widths per layer: values per position of keys and of values,
        and the key heads they are of."""
        try:
            self.kv = _core.KvPool(widths, self.k_type, self.v_type, self.cache_lens)
        except ValueError as error:
            raise UserError(str(error)) from error

    def rounding_for(self, count: int) -> np.ndarray:
        """Rounding of `count` rows: the forward's own, or near exact for a module called alone."""
        if self.rows is not None and len(self.rows.rounding) == count:
            return self.rows.rounding
        return self.exact(count)

    def exact(self, count: int) -> np.ndarray:
        """Near-exact rounding (none in f32 mode) for `count` rows."""
        return np.full(count, 0 if self.activations == "f32" else 1, np.uint8)
