"""One line more in the shipped rules moves a module to plain torch; the model says the same."""

import gc
import weakref

import numpy as np
import pytest
import torch

from ktransformers.models.registry import family_for
from ktransformers.optimize.shipped import shipped_rules
from ktransformers.runtime.session import ChatSession, SamplingOptions
from tests.support import vocabulary
from tests.support.compare import compare
from tests.support.families import families
from tests.support.pairs import left_padded, load, pair, path_of

torch.set_num_threads(1)  # miniatures are too small to share

IDS = [int(i) for i in np.random.default_rng(5).integers(3, vocabulary.SIZE, 120)]
NAMES = list(families())
LAST = "model.layers.1"  # has experts in the families with experts


def modules(name: str) -> list[str]:
    """One module of every kind in the family."""
    config = families()[name].config
    found = [f"{LAST}.{part}" for part in ("input_layernorm", "self_attn", "self_attn.o_proj")]
    if "kv_lora_rank" in config:
        query = ["q_proj"] if config["q_lora_rank"] is None else ["q_a_layernorm", "q_b_proj"]
        found += [f"{LAST}.self_attn.{part}" for part in [*query, "kv_a_layernorm", "kv_b_proj"]]
    if "qwen3" in name:
        found += [f"{LAST}.self_attn.k_norm"]
    found += [f"{LAST}.mlp"]
    if "num_experts_per_tok" in config:
        found += [f"{LAST}.mlp.experts", f"{LAST}.mlp.gate"]
        shared = {"qwen2moe": "shared_expert"}.get(name, "shared_experts")
        if "n_shared_experts" in config or name == "qwen2moe":
            found += [f"{LAST}.mlp.{shared}", f"{LAST}.mlp.{shared}.up_proj"]
        if name == "qwen2moe":
            found += [f"{LAST}.mlp.shared_expert_gate"]
    else:
        found += [f"{LAST}.mlp.up_proj"]
    return [*found, "model.rotary_emb", "model.embed_tokens", "model.norm", "lm_head", "model"]


def edited(name: str, folder, module: str, more: str = "") -> str:
    """The family's shipped rules with one line changed, or one more before the first rule."""
    model_type = pair(name).model.config.model_type
    lines = shipped_rules(family_for(model_type)).read_text().splitlines()
    pattern = "^" + module.replace(".", r"\.") + "$"
    own = f"- match: {{name: '{pattern}'}}"
    if own in lines:
        at = lines.index(own) + 1
        assert lines[at].startswith("  replace: ")
        lines[at] = "  replace: {operator: default}"
    else:
        at = next(i for i, text in enumerate(lines) if text.startswith("- "))
        rule = f"match: {{name: '{pattern}'}}, replace: {{operator: default}}, why: to compare"
        lines.insert(at, f"- {{{rule}{more}}}")
    path = folder / "rules.yaml"
    path.write_text("\n".join(lines))
    return str(path)


def assert_same(model, plain) -> None:
    """Prompt, decode and a padded batch, against the fully lowered model."""
    prompt, more = torch.tensor([IDS[:80]]), torch.tensor([[IDS[80]]])
    batch = left_padded([IDS[:9], IDS[40:71]])
    logits = []
    for one in (plain, model):
        out = one(input_ids=prompt)
        after = one(input_ids=more, past_key_values=out.past_key_values)
        both = one(**batch).logits[batch["attention_mask"].bool()]
        logits.append(torch.cat([out.logits[0], after.logits[0], both]).numpy())
    result = compare(*logits)
    assert result.nmse <= 1e-9 and result.kl_mean <= 1e-8 and result.top1 == 1.0, result


def nodes(model) -> dict[str, str]:
    return {name: kind for name, kind, _ in model.kt.decoder.nodes}


@pytest.mark.parametrize(
    ("name", "module"), [(name, module) for name in NAMES for module in modules(name)]
)
def test_a_module_moved_by_one_line_says_the_same(name, module, tmp_path, caplog):
    plain = pair(name).model
    model = load(path_of(name), optimize_config_path=edited(name, tmp_path, module))
    moved = model.get_submodule(module)
    assert type(moved).__module__.startswith(("transformers.", "torch.nn."))
    assert_same(model, plain)
    notes = model.kt.notes
    if module in ("model", "model.embed_tokens", "model.norm", "lm_head"):
        assert model.kt.decoder is None
        assert any("not lowered" in note and module in note for note in notes)
    elif module == "model.rotary_emb":
        assert set(nodes(model).values()) == {"callback"}
    else:
        # This layer alone leaves the core, and the reason is the module by name.
        assert [node for node, kind in nodes(model).items() if kind == "callback"] == [LAST]
        assert sum(f"{LAST} runs in torch" in note for note in notes) == 1
        assert any(module in note for note in notes)
    assert [record.getMessage() for record in caplog.records] == notes  # each told once


@pytest.mark.parametrize("name", ["qwen2moe", "deepseek_v3"])
@pytest.mark.parametrize("part", ["self_attn", "mlp", ""])
def test_recursive_false_takes_everything_below_too(name, part, tmp_path):
    module = f"{LAST}.{part}".rstrip(".")
    rules = edited(name, tmp_path, module, ", recursive: false")
    model = load(path_of(name), optimize_config_path=rules)
    row = model.kt.plan.row(module)
    assert row.subtree and row.operator == "default"
    below = [m for n, m in model.named_modules() if n == module or n.startswith(module + ".")]
    assert all(type(m).__module__.startswith(("transformers.", "torch.nn.")) for m in below)
    assert not any(p.is_meta for m in below for p in m.parameters())
    assert_same(model, pair(name).model)


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek_v2"])
@pytest.mark.parametrize("module", [f"{LAST}.self_attn", "lm_head"])
def test_generation_and_chat_through_a_mixed_model(name, module, tmp_path):
    plain = pair(name).model
    model = load(path_of(name), optimize_config_path=edited(name, tmp_path, module))
    batch = left_padded([IDS[:9], IDS[40:71], IDS[3:30]])
    for settings in ({}, {"no_repeat_ngram_size": 2}, {"use_cache": False}):
        settings |= {"max_new_tokens": 6, "eos_token_id": None}
        ours, theirs = (one.generate(**batch, **settings) for one in (model, plain))
        assert torch.equal(ours, theirs)
    sessions = [ChatSession(one) for one in (model, plain)]
    for turn in (IDS[:70], IDS[:80], [*IDS[:20], 9]):
        for session in sessions:
            session.append(turn)
        ours, theirs = (list(s.generate(SamplingOptions(max_new_tokens=5))) for s in sessions)
        assert ours == theirs


def test_keys_and_values_of_a_torch_layer_are_in_the_same_pages(tmp_path):
    """A sequence that both kinds of layer wrote holds in each layer what it holds elsewhere."""
    rules = edited("llama", tmp_path, f"{LAST}.self_attn")
    model, plain = load(path_of("llama"), optimize_config_path=rules), pair("llama").model
    caches = [one(input_ids=torch.tensor([IDS[:70]])).past_key_values for one in (model, plain)]
    for layer in range(2):
        ours, theirs = (cache.sequences[0].read(layer, 70) for cache in caches)
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(b).max() > 0.1 and np.abs(a - b).max() < 1e-4
    assert model.kt.engine.kv.pages_in_use == 2


def test_torch_is_held_to_one_thread_while_a_layer_runs(tmp_path):
    rules = edited("llama", tmp_path, f"{LAST}.mlp")
    torch.set_num_threads(2)
    for lowered in (True, False):
        model = load(path_of("llama"), optimize_config_path=rules, lowered=lowered)
        seen = []
        model.get_submodule(f"{LAST}.mlp").register_forward_hook(
            lambda *_, seen=seen: seen.append(torch.get_num_threads())
        )
        model(input_ids=torch.tensor([IDS[:5]]))
        assert seen == [1] and torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_a_mixed_model_is_freed(tmp_path):
    """The decoder's callback to a torch layer must not keep the model alive."""
    rules = edited("llama", tmp_path, f"{LAST}.mlp")
    model = load(path_of("llama"), optimize_config_path=rules)
    gone = weakref.ref(model)
    model(input_ids=torch.tensor([IDS[:5]]))
    del model
    gc.collect()
    assert gone() is None


def test_an_error_in_a_torch_layer_reaches_the_caller_and_leaves_the_cache(tmp_path):
    rules = edited("llama", tmp_path, f"{LAST}.mlp")
    model = load(path_of("llama"), optimize_config_path=rules)
    cache = model(input_ids=torch.tensor([IDS[:5]])).past_key_values

    def fail(*_):
        raise RuntimeError("planted")

    hook = model.get_submodule(f"{LAST}.mlp").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    hook.remove()
    assert cache.sequences[0].length == 5 and model.kt.engine.rows is None
    again = model(input_ids=torch.tensor([[7]]), past_key_values=cache).logits
    whole = pair("llama").model(input_ids=torch.tensor([[*IDS[:5], 7]])).logits[:, -1:]
    assert torch.allclose(again, whole, atol=1e-4)
