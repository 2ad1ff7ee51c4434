"""Upstream's two Python entry points: optimize_and_load_gguf and prefill_and_generate."""

import pytest
import torch
from transformers import GenerationConfig

from ktransformers.errors import UserError
from ktransformers.models.registry import family_for
from ktransformers.optimize.optimize import optimize_and_load_gguf
from ktransformers.optimize.shipped import shipped_rules
from ktransformers.util.utils import prefill_and_generate
from tests.support.pairs import pair, path_of

PROMPT = torch.tensor([[5, 9, 100, 42, 77, 30, 8, 250]])


def on_meta(name: str):
    reference = pair(name).reference
    with torch.device("meta"):
        return type(reference)(reference.config)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2moe", "mixtral"])
@pytest.mark.parametrize("own_rules", [True, False])
def test_a_model_on_meta_becomes_ours_in_place(name, own_rules):
    model = on_meta(name)
    rules = shipped_rules(family_for(model.config.model_type)) if own_rules else None
    result = optimize_and_load_gguf(
        model, rules, str(path_of(name)), model.config, activations="f32", cache_lens=512
    )
    assert result is None and model.gguf_loader.path == str(path_of(name))
    assert not model.training and model.device.type == "cpu" and model.cache_lens == 512
    assert model.kt.decoder is not None
    out = model(input_ids=PROMPT).logits
    assert torch.allclose(out, pair(name).model(input_ids=PROMPT).logits, atol=1e-5)
    assert torch.equal(
        model.generate(PROMPT, max_new_tokens=5, do_sample=False),
        pair(name).model.generate(PROMPT, max_new_tokens=5, do_sample=False),
    )


def test_upstreams_rules_and_devices_are_understood(tmp_path):
    rules = tmp_path / "upstream.yaml"
    rules.write_text(
        "- match:\n"
        "    name: '^model\\.layers\\..*\\.mlp\\.experts$'\n"
        "  replace:\n"
        "    class: ktransformers.operators.experts.KTransformersExperts\n"
        "    kwargs: {prefill_device: cuda, generate_device: cpu, generate_op: KExpertsCPU}\n"
        "  recursive: False\n"
    )
    model = on_meta("deepseek_v3")
    optimize_and_load_gguf(model, str(rules), str(path_of("deepseek_v3")), model.config, "cuda:0")
    assert model.kt.plan.row("model.layers.1.mlp.experts").operator == "moe.experts"
    assert model.kt.decoder is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gguf_path": "/nowhere.gguf"}, "nowhere.gguf"),
        ({"default_device": "npu"}, "default_device='npu'"),
        ({"q4_gguf_path": "x"}, "q4_gguf_path"),
        ({"cpu_infer": 0}, "at least one thread"),
        ({"speed": 11}, "speed: no such argument"),
        (
            {"gguf_path": "llama"},
            "holds a llama model .LlamaForCausalLM., the module is",
        ),
    ],
)
def test_wrong_arguments_are_told_in_one_line(change, message):
    if change.get("gguf_path") == "llama":
        change = {"gguf_path": path_of("llama")}
    arguments = {"rule_file": None, "gguf_path": path_of("qwen3moe")} | change
    with pytest.raises(UserError, match=message) as caught:
        optimize_and_load_gguf(on_meta("qwen3moe"), **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="weights of its own"):
        optimize_and_load_gguf(pair("llama").reference, None, path_of("llama"))


def test_prefill_and_generate_prints_and_returns_the_answer(capsys):
    from ktransformers import AutoTokenizer

    model = pair("qwen3moe").model
    tokenizer = AutoTokenizer.from_pretrained(path_of("qwen3moe"))
    before = model.generation_config
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=before.eos_token_id)
    try:
        tokens = prefill_and_generate(model, tokenizer, PROMPT, 10, True, mode="normal")
        expected = model.generate(PROMPT, max_new_tokens=10, do_sample=False)[0, 8:].tolist()
        ends = set(before.eos_token_id)
        assert tokens == [token for token in expected if token not in ends]
        printed = capsys.readouterr().out
        assert printed.startswith(tokenizer.decode(tokens))
        labels = [line.split(":")[0] for line in printed.splitlines()[-6:]]
        assert labels == [
            "prompt eval count", "prompt eval duration", "prompt eval rate",
            "eval count", "eval duration", "eval rate",
        ]  # fmt: skip
        assert "prompt eval count:    8 token(s)" in printed

        thinking = prefill_and_generate(model, tokenizer, PROMPT, 4, force_think=True)
        assert capsys.readouterr().out.startswith("<think>\n")
        ids = torch.cat([PROMPT, tokenizer("<think>\n", return_tensors="pt").input_ids], dim=1)
        expected = model.generate(ids, max_new_tokens=4, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()
        assert thinking == [token for token in expected if token not in ends]
        assert prefill_and_generate(model, tokenizer, PROMPT, 10, chunk_size=3) == tokens
    finally:
        model.generation_config = before
    for inputs, message in ((PROMPT.repeat(2, 1), "one prompt"), (PROMPT.repeat(1, 1024), "cache")):
        with pytest.raises(UserError, match=message):
            prefill_and_generate(model, tokenizer, inputs, 4)
