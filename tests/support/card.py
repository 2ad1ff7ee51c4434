"""Small models with a part on a card, which the emulator of the CUDA kernels stands for.

The emulated library is loaded as users load another one, by KT_CUDA_LIBRARY. KT_TEST_CUDA_LIBRARY
names the real one where there is a card (tests/gpu/check.sh).
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ktransformers.models.registry import family_for
from ktransformers.optimize import nvidia
from ktransformers.optimize.shipped import shipped_rules
from tests.support.families import families
from tests.support.miniatures import miniature

ROOT = Path(__file__).parents[2]
LIBRARY = Path(
    os.environ.get("KT_TEST_CUDA_LIBRARY")
    or ROOT / os.environ.get("KT_OBJECTS", "build") / "libkt_cuda_emulated_api.so"
).absolute()

ON_CARD = bool(os.environ.get("KT_TEST_CUDA_LIBRARY"))

needs_library = pytest.mark.skipif(
    not LIBRARY.exists(), reason=f"{LIBRARY} is not built (cmake -DKT_BUILD_TESTS=ON)"
)

# What of a shipped rule file goes to the card.
ALL = r"(?!model\b|embedding)(\S+)"
INT4 = "backend: cuda, device: 'cuda:0', options: {quant: int4}"
BUT_EXPERTS = r"(?!model\b|embedding|moe\.experts)(\S+)"


def emulated(monkeypatch):
    """A card, while a fixture waits."""
    monkeypatch.setenv("KT_CUDA_LIBRARY", str(LIBRARY))
    monkeypatch.delenv("KT_VRAM_LIMIT", raising=False)
    nvidia.module_state.cache_clear()
    yield
    nvidia.module_state.cache_clear()


def rules_for(
    architecture: str, operators: str, folder: Path, name: str = "rules.yaml", **changes: str
) -> str:
    """A shipped rule file with some operators on the card. changes: {operator: its backend}."""
    text = Path(shipped_rules(family_for(architecture))).read_text("utf-8")
    text = re.sub(
        rf"operator: {operators}, backend: cpu",
        r"operator: \1, backend: cuda, device: 'cuda:0'",
        text,
    )
    for operator, backend in changes.items():
        text = re.sub(rf"(operator: {re.escape(operator)}, ).*?\}}\n", rf"\1{backend}}}\n", text)
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def load(path, rules: str | None = None, **options):
    from ktransformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(path), activations="f32", optimize_config_path=rules, cpu_infer=2, **options
    )


def divergence(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest KL divergence of a row."""
    logs = []
    for logits in (expected.astype(np.float64), got.astype(np.float64)):
        top = logits.max(-1, keepdims=True)
        logs.append(logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).max())


def small_family(name: str, **config):
    family = families(wide=True)[name]
    return replace(family, config=family.config | {"num_hidden_layers": 2} | config)


def small(name: str, types: str = "Q4_K", **config) -> object:
    """A miniature of two layers."""
    return miniature(small_family(name, **config), types)


ATTENTION_AND_ROUTER = {
    "attention.gqa": r"self_attn$",
    "linear": r"self_attn\.[qkvo]_proj$",
    "moe.block": r"mlp$",
    "moe.router": r"mlp\.gate$",
}


def on_card_layers(layers: str, folder: Path) -> str:
    """Qwen3-MoE with the layers that a pattern names on the card, the others on the CPU."""
    own = "".join(
        f"- match: {{name: '^model\\.layers\\.{layers}\\.{pattern}'}}\n"
        f"  replace: {{operator: {operator}, backend: cuda, device: 'cuda:0'}}\n  why: a part\n"
        for operator, pattern in ATTENTION_AND_ROUTER.items()
    )
    rules = folder / "rules.yaml"
    shipped = Path(shipped_rules(family_for("qwen3_moe"))).read_text("utf-8")
    rules.write_text(own + shipped, "utf-8")
    return str(rules)
