"""What --kv_type may say, and what a position takes on a card. No torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from ktransformers import _core
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


def latent_bytes(latent: int, rope: int, fp8: bool) -> int:
    """Of one position and layer on a card; what is rotated stays f16 beside an exponent.

    Source: csrc/cuda/model/card_model.cpp, CardModel::take_cache; so below.
    """
    return latent + 2 * rope + 1 if fp8 else 2 * (latent + rope)


def grouped_bytes(heads: int, width: int, fp8: bool) -> int:
    """The same of keys and values; keys stay f16, each head's values have an exponent."""
    return heads * (3 * width + 1) if fp8 else 2 * 2 * heads * width


def card_cache_bytes(config: Mapping[str, Any], positions: int, fp8: bool) -> int:
    """A layer's cache on a card: whole pages, and one more for rows that fill a step up.

    config: transformers' fields.
    """
    if "kv_lora_rank" in config:
        position = latent_bytes(config["kv_lora_rank"], config["qk_rope_head_dim"], fp8)
    else:
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        position = grouped_bytes(config["num_key_value_heads"], width, fp8)
    pages = -(-positions // _core.KV_PAGE) + 1
    return position * pages * _core.KV_PAGE
