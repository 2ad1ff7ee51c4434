"""Which routed experts go to a GPU: the hottest by a profile, else layer by layer. No torch.

All experts of a layer are of one size, so the one that is chosen most often brings most.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ktransformers.errors import UserError
from ktransformers.optimize.facts import Group, ModelFacts

MAX_PROFILE = 64 << 20


@dataclass(frozen=True)
class Profile:
    """Of `ktransformers calibrate`. shares: {layer: each expert's part of the layer's choices,
    the largest first}."""

    path: str
    shares: dict[int, list[float]]


def read_profile(path: str) -> dict:
    """A profile as `ktransformers calibrate` writes it. Raises: UserError."""
    try:
        if Path(path).stat().st_size > MAX_PROFILE:
            raise ValueError(f"larger than {MAX_PROFILE >> 20} MiB")
        profile = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no profile of calibrate ({error})") from None
    kinds = {"model": str, "fewer": dict, "layers": dict, "experts_per_token": int}
    for key, kind in kinds.items():
        if not isinstance(profile, dict) or not isinstance(profile.get(key), kind):
            raise UserError(f"{path}: is no profile of calibrate (it has no {key})")
    return profile


def hot_profile(path: str, facts: ModelFacts) -> Profile:
    """The counts of a profile of such a model. Raises: UserError."""
    layers, shares = read_profile(path)["layers"], {}
    for group in facts.of("experts"):
        entry = layers.get(str(group.layer))
        counts = entry.get("counts") if isinstance(entry, dict) else None
        if (
            not isinstance(counts, list)
            or len(counts) != facts.experts
            or not all(type(count) is int and count >= 0 for count in counts)
            or not sum(counts)
        ):
            raise UserError(
                f"{path}: layer {group.layer} has no counts of {facts.experts} experts; it is of "
                "another model"
            )
        shares[group.layer] = sorted((count / sum(counts) for count in counts), reverse=True)
    return Profile(path, shares)


def fill(groups: list[Group], experts: int, room: float, profile: Profile | None) -> dict[int, int]:
    """{layer: how many of its experts} for `room` bytes of one GPU; layers without are left out."""
    left, counts = room, {}
    if profile is None:
        for group in groups:
            one = group.nbytes / experts
            if (number := min(experts, int(left / one))) > 0:
                counts[group.layer] = number
                left -= number * one
        return counts
    ranked = sorted(
        ((share, group) for group in groups for share in profile.shares[group.layer]),
        key=lambda item: (-item[0], item[1].layer),
    )
    for _, group in ranked:
        one = group.nbytes / experts
        if one > left:
            break
        counts[group.layer] = counts.get(group.layer, 0) + 1
        left -= one
    return counts


def parts(group: Group, count: int, experts: int, profile: Profile | None) -> tuple[Group, Group]:
    """(on the GPU, the rest) of a layer whose `count` hottest experts are there."""
    share = sum(profile.shares[group.layer][:count]) if profile else count / experts
    nbytes = group.nbytes * count // experts
    there = Group(group.kind, group.layer, nbytes, group.active * share, group.ops * share)
    rest = Group(group.kind, group.layer, group.nbytes - nbytes, group.active - there.active,
                 group.ops - there.ops)  # fmt: skip
    return there, rest
