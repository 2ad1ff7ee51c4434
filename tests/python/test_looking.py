"""`rules check`, `compare` and `calibrate`: what they say, held against a count of one's own."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ktransformers.cli.main import main
from ktransformers.optimize.check import check
from ktransformers.optimize.plan import PlanContext, plan
from ktransformers.optimize.rules import parse_rules
from ktransformers.util import measure
from tests.support.miniatures import miniature, write
from tests.support.reference import Reference
from tests.support.upstream_rules import CORPUS, LAYERS, linear, plain, rule

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/data/tiny_deepseek_v3.f16.gguf"
TEXT = ROOT / "tests/data/tinyshakespeare_head.txt"


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    return write(miniature("deepseek_v3", types="Q8_0"), tmp_path_factory.mktemp("look") / "m.gguf")


def checked(capsys, tmp_path, model, text: str, *words: str):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    status = main(["rules", "check", str(path), "--model", str(model), *words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_each_rule_is_told_what_it_takes(v3, tmp_path, capsys):
    text = (
        plain("cpu", LAYERS + r"\.self_attn$")
        + plain("cpu", r"^model\.layers\.0\.self_attn$")
        + rule("attention.KDeepseekV2Attention", r"^model\.layer\.\d+\.self_attn$")
        + rule("gate.KMoEGate", r"\.gates$", "modeling_deepseek_v3.MoEGate")
        + rule("layernorm.KQwen2MoeRMSNorm", None, "modeling_qwen2_moe.Qwen2MoeRMSNorm")
    )
    status, out, err = checked(capsys, tmp_path, v3, text)
    lines = out.splitlines()
    assert status == 1 and err == ""
    assert lines[0].endswith("upstream dialect, 5 rules, " + lines[0].rpartition(", ")[2])
    assert lines[1] == "r.yaml:1  default: 3 modules: model.layers.{0-2}.self_attn"
    assert (
        "shadowed: all 1 modules it matches are taken by rules above; move it above line 1"
        in (lines[2])
    )
    assert "takes nothing; no module has such a name; nearest: model.layers.N.self_attn" in lines[3]
    assert "the class is there (model.layers.1.mlp.gate), the name does not fit" in lines[4]
    assert "the model has no such class" in lines[5] and "RMSNorm" in lines[5]
    untouched = next(line for line in lines if line.startswith("no rule: "))
    assert "model.embed_tokens" in untouched and "self_attn," not in untouched


@pytest.mark.parametrize("name", ["v2_two_gpus", "qwen2moe", "mixtral"])
def test_it_counts_what_the_plan_has(name, tmp_path):
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.cli.rules_command import tree_of

    family, text = CORPUS[name]
    tree, gguf = tree_of(str(write(miniature(family, types="Q8_0"), tmp_path / "m.gguf")))
    rules = parse_rules(text, "f")
    context = PlanContext(cuda_devices=2)
    made = check(tree, rules, context)
    rows = plan(tree, rules, context).rows
    for one in made.rules:
        planned = {row.module for row in rows if row.rule == one.rule.place}
        assert planned <= set(one.takes), one.rule.place
    assert {row.module for row in rows if row.rule is None and row.kind} == set(made.untouched)
    assert made.error == "" and isinstance(gguf, type(open_model(gguf.path)))


def test_all_rules_of_a_good_file_take_something(tmp_path, capsys):
    text = CORPUS["v3"][1]
    status, out, _ = checked(capsys, tmp_path, "DeepSeek-V3", text, "--device-map", "cuda=cpu")
    assert status == 0 and "takes nothing" not in out
    assert "model.layers.{3-60}.mlp.experts" in out
    status, out, err = checked(capsys, tmp_path, "deepseek-v3", linear("cuda:3", "^lm_head"),
                               "--gpus", "2")  # fmt: skip
    assert status == 2 and "--device-map cuda:3=cuda:0" in err and err.count("\n") == 1


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys):
    status, _, err = checked(capsys, tmp_path, "no-such-model", CORPUS["v3"][1])
    assert status == 2 and err.count("\n") == 1


# --- compare


def test_two_rule_files_are_compared(v3, tmp_path, capsys):
    shipped = (ROOT / "optimize_rules/deepseek2.yaml").read_text()
    other = tmp_path / "torch_mlp.yaml"
    other.write_text(
        "- match: {name: '^model\\.layers\\.0\\.mlp$'}\n  replace: {operator: default}\n"
        "  recursive: false\n  why: to compare\n" + shipped
    )
    third = tmp_path / "coarse.yaml"
    experts = "operator: moe.experts, backend: cpu"
    third.write_text(shipped.replace(experts, experts + ", options: {quant: q2_k}"))
    text = tmp_path / "t.txt"
    text.write_text("".join(chr(97 + i * i % 26) for i in range(400)))
    base = str(ROOT / "optimize_rules/deepseek2.yaml")
    words = ["--gguf_path", str(v3), "--text", str(text), "--tokens", "40", "--new_tokens", "6"]

    def run(a, b):
        assert main(["compare", str(a), str(b), *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    same = run(base, base)
    assert same["kl_max"] == 0 and same["first_difference"] == [None] * 3
    torch_mlp = run(base, other)
    assert 0 < torch_mlp["kl_mean"] < 1e-3 and torch_mlp["runs"][1]["torch_modules"] > 0
    coarse = run(base, third)
    assert coarse["kl_mean"] > 10 * torch_mlp["kl_mean"]
    assert any(at is not None for at in coarse["first_difference"])
    a, b = (sum(run["device_bytes"].values()) for run in coarse["runs"])
    assert b < 0.8 * a
    assert main(["compare", base, str(third), *words]) == 0
    shown = capsys.readouterr().out
    assert "KL(A || B) over 40 tokens" in shown and "differs at token" in shown
    assert main(["compare", base, str(tmp_path / "none.yaml"), *words]) == 2


def test_measures_are_those_of_torch():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 3, (2, 5, 40)).astype(np.float32)
    ids = rng.integers(0, 40, 5)
    p, q = (torch.log_softmax(torch.tensor(x, dtype=torch.float64), -1) for x in (a, b))
    wanted = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert np.allclose(measure.kl(a, b), wanted.numpy(), atol=1e-12)
    loss = torch.nn.functional.cross_entropy(torch.tensor(a[:-1]), torch.tensor(ids[1:]))
    assert measure.nats(a, ids) == pytest.approx(loss.item(), rel=1e-5)
    assert measure.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert measure.first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert measure.first_difference([1, 2], [1, 2, 3]) == 2


# --- calibrate


def calibrated(capsys, out, *words: str):
    status = main(["calibrate", str(out), "--gguf_path", str(TINY), "--text", str(TEXT),
                   "--tokens", "256", *words])  # fmt: skip
    return status, capsys.readouterr()


def test_a_profile_counts_what_transformers_router_chooses(tmp_path, capsys):
    out = tmp_path / "p.json"
    status, shown = calibrated(capsys, out, "--experts-per-token", "6", "--max-kl", "0.05")
    assert status == 0 and "gate 0.05: met" in shown.out
    profile = json.loads(out.read_text())
    from ktransformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(str(TINY))(TEXT.read_text(), add_special_tokens=False)
    ids = ids["input_ids"][:256]
    from tests.support import tiny_deepseek

    reference = Reference.load(TINY, tiny_deepseek.FAMILY)
    counts = {}

    def hook(index):
        def see(_module, _args, output):
            counts[index] = np.bincount(output[2].numpy().reshape(-1), minlength=16)

        return see

    for index, layer in enumerate(reference.model.model.layers):
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(hook(index))
    full = reference.logits(ids)
    for index, wanted in counts.items():
        found = np.asarray(profile["layers"][str(index)]["counts"])
        assert found.sum() == wanted.sum() == 256 * 8
        assert np.abs(found - wanted).sum() < 0.02 * wanted.sum()  # near ties fall either way
        ranks = profile["layers"][str(index)]["by_rank"]
        assert ranks == sorted(ranks, reverse=True) and len(ranks) == 8
    assert profile["perplexity"] == pytest.approx(
        np.exp(measure.nats(full, np.asarray(ids))), rel=0.01
    )
    # What fewer experts cost, by transformers' own routing with top_k changed.
    for layer in reference.model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.top_k = layer.mlp.top_k = 6
    fewer = reference.logits(ids)
    kl = measure.kl(full, fewer).mean()
    assert profile["fewer"]["6"]["kl_mean"] == pytest.approx(kl, rel=0.1)


def test_without_a_met_gate_no_fewer_experts(tmp_path, capsys):
    out = tmp_path / "p.json"
    assert calibrated(capsys, out, "--experts-per-token", "4")[0] == 2
    status, shown = calibrated(capsys, out, "--experts-per-token", "8", "--max-kl", "1")
    assert status == 2 and "the model uses 8; give fewer" in shown.err
    status, shown = calibrated(capsys, out, "--experts-per-token", "2", "--max-kl", "1e-5")
    assert status == 0 and "gate 1e-05: not met" in shown.out

    def chat(*words: str) -> tuple[int, str]:
        status = main(["chat", "--gguf_path", str(TINY), "--prompt", "A", "--max_new_tokens", "4",
                       "--temperature", "0", *words])  # fmt: skip
        return status, capsys.readouterr().err

    status, err = chat("--experts_per_token", "2")
    assert status == 2 and "changes what a model says" in err
    status, err = chat("--experts_per_token", "2", "--experts_profile", str(out))
    assert status == 2 and re.search(r"2 experts per token has a KL of .*, its gate was 1e-05", err)
    status, err = chat("--experts_per_token", "3", "--experts_profile", str(out))
    assert status == 2 and "3 experts per token was not tried" in err
    profile = json.loads(out.read_text())
    profile["fewer"]["2"] |= {"passed": True}
    out.write_text(json.dumps(profile))
    assert chat("--experts_per_token", "2", "--experts_profile", str(out))[0] == 0
    out.write_text(json.dumps(profile | {"model": "other.gguf"}))
    status, err = chat("--experts_per_token", "2", "--experts_profile", str(out))
    assert status == 2 and "was measured with other.gguf" in err
    for text in ("[1]", "{", '{"model": 3}'):
        out.write_text(text)
        status, err = chat("--experts_per_token", "2", "--experts_profile", str(out))
        assert status == 2 and "is no profile of calibrate" in err


def test_a_dense_model_has_nothing_to_calibrate(tmp_path, capsys):
    model = write(miniature("qwen3", types="Q8_0"), tmp_path / "m.gguf")
    words = ["calibrate", str(tmp_path / "p.json"), "--gguf_path", str(model), "--text", str(TEXT)]
    assert main(words) == 2
    assert "has no routed experts" in capsys.readouterr().err
