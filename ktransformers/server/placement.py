"""What `GET /placement` answers: the plan of the loaded model, with the bytes and types it has.

Nothing of the web server's is imported: tests of models on a card read it where that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ktransformers.optimize.system import meminfo, memory_limit

if TYPE_CHECKING:
    from ktransformers.server.service import Service


def capacity_bytes(devices: Iterable[str]) -> dict[str, int]:
    """Bytes of memory that the devices have in all, where that can be told."""
    limit, total = memory_limit(), meminfo().get("MemTotal", 0)
    found = {}
    for device in devices:
        if device == "cpu" and total:
            found[device] = min(total, limit or total)
        elif device.startswith("cuda"):
            import torch

            if torch.cuda.is_available():
                found[device] = torch.cuda.get_device_properties(device).total_memory
    return found


def card_cache_type(kt: Any) -> str | None:
    """What layers on cards keep keys and values in; None where there are none."""
    if all(device == "cpu" for _, _, device in kt.decoder.nodes):
        return None
    return "fp8" if kt.engine.fp8_cache else "f16"


def placement_json(service: Service) -> dict[str, Any]:
    """rows: of the plan; totals: bytes per device; nodes: of the program that runs."""
    from ktransformers.optimize.report import summary, to_json

    kt = service.model.kt
    plan = to_json(kt.plan)
    plan["rules"] = plan["rules"].rsplit("/", 1)[-1]
    for row in plan["rows"]:
        if row["rule"]:
            row["rule"] = row["rule"].rsplit("/", 1)[-1]
    for row, planned in zip(plan["rows"], kt.plan.rows, strict=True):
        stored = sorted({kt.gguf.tensor(name).type for name in row["tensors"]})
        there = row["how"]["weights"].split("+") if "weights" in row["how"] else stored
        row["formats"] = there + [one for one in stored if planned.on_cpu and one not in there]
    cache = kt.engine.kv
    return plan | {
        "capacity_bytes": capacity_bytes(plan["device_bytes"]),
        "summary": summary(kt.plan),
        "nodes": [dict(zip(("name", "kind", "device"), n, strict=True)) for n in kt.decoder.nodes],
        "totals": {
            "weights_bytes": sum(plan["device_bytes"].values()),
            "cache_bytes_per_position": cache.bytes_per_position,
            "cache_bytes": cache.bytes_per_position * cache.page_limit * 64,
            "cache_type": kt.engine.cache_text,
            "card_cache_type": card_cache_type(kt),
        },
        "threads": kt.engine.context.threads,
        "isa": kt.engine.context.isa,
        "activations": kt.engine.activations,
    }
