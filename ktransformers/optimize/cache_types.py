"""What --kv_type may say. No torch."""

from collections.abc import Iterable

from ktransformers.errors import UserError

CPU_TYPES = ("i16", "f16", "bf16", "f32", "q8_0")  # of the core's KvType, for keys and values
CARD_TYPE = "fp8"  # of layers on cards only; those on the CPU then keep their default


def checked_kv_type(kv_type: str | None) -> str | None:
    """Raises: UserError for what is no cache type."""
    known = kv_type is None or kv_type == CARD_TYPE
    if not known and not all(part in CPU_TYPES for part in kv_type.split("+", 1)):
        raise UserError(
            f"--kv_type {kv_type}: no cache type; choose {', '.join(CPU_TYPES)}, two of these with "
            f"a + for keys and values, or on GPUs {CARD_TYPE}"
        )
    return kv_type


def check_has_card(kv_type: str | None, devices: Iterable[str]) -> None:
    """Refuses "fp8" where no layer would follow it. devices: of the modules, as in "cuda:0".

    Raises: UserError.
    """
    if kv_type == CARD_TYPE and not any(device.startswith("cuda") for device in devices):
        raise UserError(
            "kv_type='fp8' is for the cache of layers on a card, and none is there: choose "
            f"{', '.join(CPU_TYPES[:-1])} or {CPU_TYPES[-1]}"
        )
