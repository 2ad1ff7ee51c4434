"""Python's cyclic garbage collector, held while much is made and nothing thrown away."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Importing torch and transformers makes some million objects that all stay; looking through
    them again and again takes a quarter of the time to load a small model."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
