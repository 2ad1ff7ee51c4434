"""What the devices named in a rule file stand for on this machine."""

import re
from collections.abc import Iterable

from ktransformers.errors import UserError

_SOURCE = re.compile(r"[a-z]+(:\d{1,2})?")
_TARGET = re.compile(r"cpu|cuda:\d{1,2}")


def parse_device_map(words: Iterable[str]) -> dict[str, str]:
    """["cuda:0=cpu", "cuda:1=cuda:0"] (or both in one word, with a comma) -> a device_map for
    PlanContext, which checks that the machine has what stands on the right.

    Raises UserError for a word without "=", or one that names no device.
    """
    found = {}
    for word in ",".join(words).split(","):
        if not word:
            continue
        source, _, target = (part.strip() for part in word.partition("="))
        if not _SOURCE.fullmatch(source) or not _TARGET.fullmatch(target):
            raise UserError(
                f"--device-map {word}: write DEVICE=DEVICE, as in cuda:0=cpu or cuda:1=cuda:0"
            )
        found[source] = target
    return found
