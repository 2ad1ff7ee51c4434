"""Operators people write: as a script's class, as a package on the command line, never by a rule.

The operator of docs/python.md is run as it stands there.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ktransformers import AutoModelForCausalLM
from ktransformers.checkpoint.gguf import open_model
from ktransformers.cli.main import main
from ktransformers.errors import UserError
from ktransformers.models.registry import family_of
from ktransformers.operators.base_operator import BaseInjectedModule
from ktransformers.optimize.shipped import shipped_rules
from ktransformers.util.custom_gguf import translate_name_to_gguf
from ktransformers.util.custom_loader import GGUFLoader, ModelLoaderFactory
from tests.support.families import families
from tests.support.miniatures import miniature, write
from tests.support.ours import logits
from tests.support.reference import map_weights, read_weights

ROOT = Path(__file__).parents[2]
IDS = [5, 77, 141, 3, 250, 12]
MLP = r"^model\.layers\.1\.mlp$"


class Halved(BaseInjectedModule):
    """The module's result times a factor; remembers what it was given."""

    def __init__(self, key, gguf_loader, config, orig_module, factor=0.5, **kwargs):
        super().__init__(key, gguf_loader, config, orig_module, **kwargs)
        self.factor, self.rows = factor, 0

    def forward(self, x):
        self.rows += x.shape[0] * x.shape[1]
        return self.orig_module.forward(x) * self.factor


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return write(miniature("qwen3", types="Q8_0"), tmp_path_factory.mktemp("own") / "m.gguf")


def run_with(model_file, tmp_path, text: str):
    rules = tmp_path / "rules.yaml"
    rules.write_text(text)
    return AutoModelForCausalLM.from_pretrained(
        str(model_file), activations="f32", optimize_config_path=str(rules)
    )


def shipped(model_file) -> str:
    return shipped_rules(family_of(open_model(model_file))).read_text()


def own_rule(name: str, options: str = "") -> str:
    return (
        f"- match: {{name: '{MLP}'}}\n"
        f"  replace: {{operator: {name}, backend: torch{options}}}\n  why: to try it\n"
    )


def upstream_rule(name: str, kwargs: str = "") -> str:
    return f"- match:\n    name: '{MLP}'\n  replace:\n    class: {name}\n{kwargs}"


def test_a_class_of_the_script_is_an_operator_in_both_dialects(model_file, tmp_path):
    name = f"{__name__}.Halved"
    plain = AutoModelForCausalLM.from_pretrained(str(model_file), activations="f32")
    same = run_with(
        model_file, tmp_path, own_rule(name, ", options: {factor: 1.0}") + shipped(model_file)
    )
    assert np.abs(logits(plain, IDS) - logits(same, IDS)).max() < 1e-4
    mine = run_with(model_file, tmp_path, own_rule(name) + shipped(model_file))
    theirs = run_with(model_file, tmp_path, upstream_rule(name, "    kwargs: {factor: 0.5}\n"))
    assert np.abs(logits(plain, IDS) - logits(mine, IDS)).max() > 0.1
    assert np.abs(logits(theirs, IDS) - logits(mine, IDS)).max() < 1e-5
    module = theirs.model.layers[1].mlp
    assert type(module) is Halved and module.rows == len(IDS)
    # Its children are operators by rules of their own, and everybody sees the same ones.
    assert module.gate_proj is module.orig_module.gate_proj
    assert type(module.gate_proj).__name__ == "Linear" and module.gate_proj.core is not None
    assert module.orig_module.factor == 0.5 and module.key == "model.layers.1.mlp"
    assert any("is a torch Halved" in note for note in theirs.kt.notes)


def test_it_may_load_tensors_of_its_own(model_file, tmp_path):
    class Reads(BaseInjectedModule):
        def load(self):
            down = self.gguf_loader.load_gguf_tensor(f"{self.key}.down_proj")
            self.register_buffer("scale", down.abs().max())

        def forward(self, x):
            return self.orig_module.forward(x) * 0 + self.scale

    model = run_with(model_file, tmp_path, upstream_rule(f"{__name__}.{Reads.__qualname__}"))
    module = model.model.layers[1].mlp
    weights = map_weights(read_weights(model_file), families()["qwen3"])
    wanted = np.abs(weights["model.layers.1.mlp.down_proj.weight"]).max()
    assert module.scale.item() == pytest.approx(wanted)
    assert torch.allclose(module(torch.ones(1, 2, 128)), torch.tensor(wanted))


def test_wrong_arguments_are_one_line(model_file, tmp_path):
    class Strict(BaseInjectedModule):
        def __init__(self, key, gguf_loader, config, orig_module):
            super().__init__(key, gguf_loader, config, orig_module)

    with pytest.raises(UserError, match="model.layers.1.mlp: .*Strict.*unexpected keyword"):
        run_with(
            model_file, tmp_path,
            upstream_rule(f"{__name__}.{Strict.__qualname__}", "    kwargs: {x: 1}\n"),
        )  # fmt: skip


PACKAGE = """
from ktransformers.operators.base_operator import BaseInjectedModule

print("imported")


class Twice(BaseInjectedModule):
    def forward(self, x):
        return self.orig_module.forward(x) * 2
"""


def test_a_rule_imports_nothing_and_the_command_line_what_it_names(model_file, tmp_path):
    (tmp_path / "somebodys_ops.py").write_text(PACKAGE)
    rules = tmp_path / "rules.yaml"
    rules.write_text(upstream_rule("somebodys_ops.Twice"))

    def run(*words: str):
        return subprocess.run(
            [sys.executable, "-m", "ktransformers", "plan", "--gguf_path", str(model_file),
             "--optimize_config_path", str(rules), *words],
            capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    refused = run()
    assert refused.returncode == 2 and "imported" not in refused.stdout
    assert refused.stderr.count("\n") == 1
    assert "rules.yaml:4:12: unknown class 'somebodys_ops.Twice'" in refused.stderr
    done = run("--allow-plugin", "somebodys_ops")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("imported") and "somebodys_ops.Twice" in done.stdout


@pytest.mark.parametrize(
    "name, told",
    [("no_such_package", "no such package"), ("os;x", "give a package's name"),
     ("breaks", "RuntimeError: on purpose")],
)  # fmt: skip
def test_plugins_that_cannot_be(name, told, tmp_path, monkeypatch, capsys, model_file):
    (tmp_path / "breaks.py").write_text("raise RuntimeError('on purpose')\n")
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--gguf_path", str(model_file), "--allow-plugin", name]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


def test_the_operator_of_the_documentation(model_file, tmp_path, monkeypatch):
    text = (ROOT / "docs/python.md").read_text()
    code, rule = re.search(
        r"## An operator of your own\n.*?```python\n(.*?)```.*?```yaml\n(.*?)```", text, re.S
    ).groups()
    assert len(code.splitlines()) <= 30
    (tmp_path / "my_operators.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import my_operators  # noqa: F401

    plain = AutoModelForCausalLM.from_pretrained(str(model_file), activations="f32")
    model = run_with(model_file, tmp_path, rule + shipped(model_file))
    changed = [type(layer.mlp).__name__ for layer in model.model.layers]
    assert "ClippedMLP" in changed
    assert np.abs(logits(plain, IDS) - logits(model, IDS)).max() > 1e-3


# --- names and loaders


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3_whole", "qwen2moe"])
def test_names_are_those_of_the_file(name, tmp_path):
    path = write(miniature(name, types="Q8_0"), tmp_path / "m.gguf")
    loader, found = GGUFLoader(path), 0
    weights = map_weights(read_weights(path), families()[name])
    for parameter, wanted in weights.items():
        if "experts." in parameter:
            continue
        is_tied = parameter == "lm_head.weight" and "output.weight" not in loader.tensor_info
        assert is_tied or translate_name_to_gguf(parameter) in loader.tensor_info, parameter
        assert loader.has_tensor(parameter)
        assert np.array_equal(loader.load_gguf_tensor(parameter).numpy().reshape(-1),
                              wanted.reshape(-1)), parameter  # fmt: skip
        found += 1
    assert found > 20


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm", "output_norm"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.12.self_attn.kv_a_proj_with_mqa.weight", "blk.12.attn_kv_a_mqa.weight"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "blk.3.exp_probs_b.bias"),
        ("model.layers.3.block_sparse_moe.gate.weight", "blk.3.ffn_gate_inp.weight"),
        ("model.layers.3.mlp.experts.ffn_up_exps.weight", "blk.3.ffn_up_exps.weight"),
        ("blk.3.ffn_up_exps.weight", "blk.3.ffn_up_exps.weight"),
        ("something.else", "something.else"),
    ],
)
def test_translated_names(ours, theirs):
    assert translate_name_to_gguf(ours) == theirs


def test_loaders(tmp_path):
    path = write(miniature("mixtral", types="Q4_0"), tmp_path / "m.gguf")
    loader = ModelLoaderFactory.create_loader(path)
    up = loader.load_gguf_tensor("blk.1.ffn_up_exps.weight")
    assert torch.equal(loader.load_expert_tensor("blk.1.ffn_up_exps.weight", 3), up[3])
    assert loader.get_ggml_type("blk.1.ffn_up_exps.weight") == "q4_0"
    data, kind = loader.get_undequanted_tensor_and_ggml_type("lm_head")
    assert data.dtype == torch.uint8 and kind == loader.get_ggml_type("output.weight")
    assert loader.get_mmap_tensor("lm_head").nbytes == data.numel()
    weights = map_weights(read_weights(path), families()["mixtral"])
    wanted = weights["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(loader.load_gguf_tensor("blk.0.attn_q.weight").numpy(), wanted)
    half = loader.load_gguf_tensor("lm_head", target_dtype=torch.float16)
    assert half.dtype == torch.float16
    with pytest.raises(UserError, match="no tensor model.layers.9.mlp.up_proj"):
        loader.load_gguf_tensor("model.layers.9.mlp.up_proj")
    with pytest.raises(UserError, match="no expert 99"):
        loader.load_expert_tensor("blk.1.ffn_up_exps.weight", 99)
