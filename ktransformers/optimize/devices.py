"""What the devices named in a rule file stand for on this machine."""

from collections.abc import Iterable

from ktransformers.errors import UserError


def parse_device_map(words: Iterable[str]) -> dict[str, str]:
    """["cuda:0=cpu", "cuda:1=cpu"] (or both in one word, with a comma) -> a PlanContext.device_map.

    Raises UserError for a word without "=", or a device this version does not have.
    """
    found = {}
    for word in ",".join(words).split(","):
        if not word:
            continue
        source, _, target = (part.strip() for part in word.partition("="))
        if not source or target != "cpu":
            raise UserError(f"--device-map {word}: write DEVICE=cpu, as in cuda:0=cpu")
        found[source] = target
    return found
