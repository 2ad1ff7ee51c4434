"""Models on a card, which the emulator of the CUDA kernels stands for: against the CPU's decoder.

The emulated library is loaded as users load another one, by KT_CUDA_LIBRARY.
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
from tests.support import ours
from tests.support.families import families
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]
EMULATED = ROOT / os.environ.get("KT_OBJECTS", "build") / "libkt_cuda_emulated_api.so"

pytestmark = pytest.mark.skipif(
    not EMULATED.exists(), reason=f"{EMULATED} is not built (cmake -DKT_BUILD_TESTS=ON)"
)

# What of a shipped rule file goes to the card.
ALL = r"(?!model\b|embedding)(\S+)"
BUT_EXPERTS = r"(?!model\b|embedding|moe\.experts)(\S+)"


@pytest.fixture(autouse=True)
def emulated_card(monkeypatch):
    monkeypatch.setenv("KT_CUDA_LIBRARY", str(EMULATED))
    monkeypatch.delenv("KT_VRAM_LIMIT", raising=False)
    nvidia.module_state.cache_clear()
    yield
    nvidia.module_state.cache_clear()


def rules_for(architecture: str, operators: str, folder: Path, **changes: str) -> str:
    """A shipped rule file with some operators on the card. changes: {operator: its backend}."""
    text = Path(shipped_rules(family_for(architecture))).read_text("utf-8")
    text = re.sub(
        rf"operator: {operators}, backend: cpu",
        r"operator: \1, backend: cuda, device: 'cuda:0'",
        text,
    )
    for operator, backend in changes.items():
        text = re.sub(rf"(operator: {re.escape(operator)}, ).*?\}}\n", rf"\1{backend}}}\n", text)
    path = folder / "rules.yaml"
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


def small(name: str, types: str = "Q4_K", **config) -> object:
    """A miniature of two layers."""
    family = families(wide=True)[name]
    config = family.config | {"num_hidden_layers": 2} | config
    return miniature(replace(family, config=config), types)


@pytest.mark.parametrize(
    ("name", "architecture", "operators", "changes"),
    [
        ("deepseek_v3", "deepseek_v3", BUT_EXPERTS, {}),
        # Compression of queries, and kv_b, as the older models have them; all experts on the card.
        ("deepseek_v2_lite", "deepseek_v2", ALL, {}),
        # Some experts in slots, the others on the CPU; norms per head.
        ("qwen3moe", "qwen3_moe", ALL,
         {"moe.experts": "backend: cuda, device: 'cuda:0', options: {experts: 5}"}),
        # Biases, and a gate on the shared expert.
        ("qwen2moe", "qwen2_moe", BUT_EXPERTS, {}),
        # The whole feed-forward part on the CPU.
        ("llama", "llama", BUT_EXPERTS, {"mlp.swiglu": "backend: cpu"}),
    ],
)  # fmt: skip
def test_a_model_on_the_card_says_what_it_says_on_the_cpu(
    tmp_path, name, architecture, operators, changes
):
    path = write(small(name), tmp_path / "model.gguf")
    rules = rules_for(architecture, operators, tmp_path, **changes)
    if name == "llama":  # an MLP is on the CPU where its products are
        text = Path(rules).read_text("utf-8")
        linear = "- match: {name: 'mlp', class: torch.nn.Linear}\n"
        linear += "  replace: {operator: linear, backend: cpu}\n  why: with the MLP\n\n"
        Path(rules).write_text(linear + text, "utf-8")
    ids = [5, 9, 2, 7]
    expected = ours.logits(load(path), ids, prompt=3)
    model = load(path, rules)
    (node,) = model.kt.decoder.nodes
    assert node == ("model.layers.0-1", "card_layers", "cuda:0")
    assert model.kt.plan.device_bytes()["cuda:0"] > 0
    got = ours.logits(model, ids, prompt=3)
    assert divergence(expected, got) <= 1e-3
    assert np.abs(expected - got).max() > 0  # it was not the CPU
