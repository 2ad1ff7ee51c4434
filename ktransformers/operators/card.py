"""A card's memory through the CUDA library: where operators put their weights. No torch."""

import ctypes
from dataclasses import dataclass

import numpy as np

from ktransformers.checkpoint.pieces import FACTS, stored_as
from ktransformers.cuda_library import CudaLibrary, CudaLibraryError
from ktransformers.errors import UserError


class CardError(UserError):
    """A card cannot give what it was asked for; the message has the device, and the bytes where
    these are too many."""


@dataclass(frozen=True)
class Placed:
    """A matrix on a card: its address there, and what it is."""

    address: int | None  # None: it is not there, this says only what it is
    rows: int
    cols: int
    gguf_id: int  # below zero: int4


@dataclass(frozen=True)
class Pinned:
    """Bytes of experts that come to a card, and how many of them it reads by itself. seconds: that
    pinning took. why: not all of them are pinned, empty where they are."""

    asked: int
    pinned: int
    seconds: float
    why: str


class Card:
    """One card, for one model. device: "cuda:0". limit: bytes it may take; 0: what is free.

    Raises: UserError where the library or the card cannot be had, and all of its methods CardError.
    """

    def __init__(self, device: str, limit: int = 0) -> None:
        self.device = device
        try:
            self.library = CudaLibrary()
        except (OSError, CudaLibraryError) as error:
            raise UserError(
                f"{device}: the CUDA module does not load ({error}); build it with: make cuda, or "
                f"say --device-map {device}=cpu"
            ) from error
        self.handle = ctypes.c_void_p()
        index = int(device.partition(":")[2] or 0)
        self.call("card_open", index, ctypes.c_int64(limit), ctypes.byref(self.handle))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.call("card_close", self.handle)

    def call(self, name: str, *arguments) -> None:
        try:
            self.library.call(name, *arguments)
        except CudaLibraryError as error:
            raise CardError(f"{self.device}: {error}") from error

    def put(self, values: np.ndarray) -> int:
        """An array's bytes -> their address on the card."""
        values = np.ascontiguousarray(values)
        return self._put("card_put", values, ctypes.c_int64(values.nbytes))

    def floats(self, values: np.ndarray) -> int:
        return self.put(np.asarray(values, np.float32))

    def halves(self, values: np.ndarray) -> int:
        """Floats, rounded to f16."""
        values = np.ascontiguousarray(values, np.float32)
        return self._put("card_put_halves", values, ctypes.c_int64(values.size))

    def matrix(self, blocks) -> Placed:
        """A matrix in a file's blocks (checkpoint.weights.Blocks)."""
        gguf_id = FACTS[stored_as(blocks.format)]["gguf_id"]
        data = np.ascontiguousarray(blocks.data).reshape(-1).view(np.uint8)
        address = self._put(
            "card_put_matrix", data, ctypes.c_int64(data.nbytes), blocks.rows, blocks.cols, gguf_id
        )
        return Placed(address, blocks.rows, blocks.cols, gguf_id)

    def int4(self, blocks, group: int, threads: int) -> tuple[Placed, float, float]:
        """The same in 4 bits: and the sums of squares of what that changed and of the values.
        group: values that share a scale, rounded unless the format has such groups; 0: Q4_0, Q4_1
        and Q4_K keep their codes, other formats are rounded, 64 values to a scale."""
        gguf_id = FACTS[stored_as(blocks.format)]["gguf_id"]
        data = np.ascontiguousarray(blocks.data).reshape(-1).view(np.uint8)
        kind, error, power = ctypes.c_int(), ctypes.c_double(), ctypes.c_double()
        address = ctypes.c_void_p()
        self.call(
            "card_put_int4", self.handle, ctypes.c_void_p(data.ctypes.data),
            ctypes.c_int64(data.nbytes), blocks.rows, blocks.cols, gguf_id, group, threads,
            *map(ctypes.byref, (kind, error, power, address)),
        )  # fmt: skip
        placed = Placed(address.value, blocks.rows, blocks.cols, kind.value)
        return placed, error.value, power.value

    def _put(self, function: str, values: np.ndarray, *sizes) -> int:
        address = ctypes.c_void_p()
        data = ctypes.c_void_p(values.ctypes.data)
        self.call(function, self.handle, data, *sizes, ctypes.byref(address))
        return address.value

    @property
    def bytes_taken(self) -> int:
        return self._bytes()[0]

    @property
    def bytes_in_ram(self) -> int:
        """Pinned, for steps."""
        return self._bytes()[2]

    def _bytes(self) -> tuple[int, ...]:
        counts = [ctypes.c_int64() for _ in range(3)]
        self.call("card_bytes", self.handle, *map(ctypes.byref, counts))
        return tuple(count.value for count in counts)


class CardModel:
    """A run of layers on a card, told of part by part (csrc/cuda/api.h: kt_cuda_model)."""

    def __init__(self, card: Card, layers: int) -> None:
        self.card = card
        self.sources: list = []  # their memory is unpinned before it goes
        self.handle = ctypes.c_void_p()
        card.call("model_open", card.handle, layers, ctypes.byref(self.handle))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.card.library.call("model_close", self.handle)

    def number(self, layer: int, name: str, value: float) -> None:
        """layer: from 0 in this run, -1 for the whole of it; so below."""
        self.card.call("model_number", self.handle, layer, name.encode(),
                       ctypes.c_double(float(value)))  # fmt: skip

    def memory(self, layer: int, name: str, address: int | None) -> None:
        if address is not None:
            self.card.call("model_memory", self.handle, layer, name.encode(),
                           ctypes.c_void_p(address))  # fmt: skip

    def matrix(self, layer: int, name: str, placed: Placed) -> None:
        """Raises: CardError for a type that cards have no kernel for."""
        self.card.call(
            "model_matrix", self.handle, layer, name.encode(), ctypes.c_void_p(placed.address),
            placed.rows, placed.cols, placed.gguf_id,
        )  # fmt: skip

    def expert(self, layer: int, expert: int, gate: Placed, up: Placed, down: Placed) -> None:
        addresses = [ctypes.c_void_p(one.address) for one in (gate, up, down)]
        self.card.call("model_expert", self.handle, layer, expert, *addresses)

    def source(self, layer: int, expert: int, part: int, matrix) -> None:
        """An expert's matrix in RAM (_core.Matrix). part: 0 gate, 1 up, 2 down."""
        self.sources.append(matrix)
        for *_, data in matrix.slices:
            place = ctypes.c_void_p(data.ctypes.data), ctypes.c_int64(data.nbytes)
            self.card.call("model_source", self.handle, layer, expert, part, *place)

    def build(self) -> None:
        """Takes the cache, and what no step can do without."""
        self.card.call("model_build", self.handle)

    def take_room(self, pin_bytes: int | None = None) -> int:
        """Takes a share of what all models of this card, built before, leave -> the most rows of a
        step: those asked for, or as many as there is room for. pin_bytes: of its sources that may
        be pinned, None: all."""
        rows, most = ctypes.c_int(), ctypes.c_int64(-1 if pin_bytes is None else pin_bytes)
        self.card.call("model_take_room", self.handle, most, ctypes.byref(rows))
        return rows.value

    def pinned(self) -> Pinned:
        """Of its sources, after take_room()."""
        asked, pinned, seconds = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_double()
        why = ctypes.create_string_buffer(512)
        self.card.call(
            "model_pinned", self.handle, ctypes.byref(asked), ctypes.byref(pinned),
            ctypes.byref(seconds), why, ctypes.c_size_t(len(why)),
        )  # fmt: skip
        return Pinned(asked.value, pinned.value, seconds.value, why.value.decode(errors="replace"))

    def for_core(self) -> dict:
        """What _core.card_node takes: addresses, and this object, which keeps what is there."""
        at = self.card.library.address
        return {"model": self.handle.value, "step": at("model_step"),
                "copy_page": at("model_copy_page"), "error": at("error"), "keep": self}  # fmt: skip
