"""Planning: pure on hand-written trees, then on transformers' real trees of every family."""

import functools
import json
import subprocess
import sys

import pytest

from ktransformers.errors import UserError
from ktransformers.models.registry import families as project_families
from ktransformers.models.registry import family_for
from ktransformers.optimize import report
from ktransformers.optimize.devices import parse_device_map
from ktransformers.optimize.plan import ModuleInfo, PlanContext, WeightInfo, plan
from ktransformers.optimize.rules import load_rules, parse_rules
from ktransformers.optimize.shipped import shipped_rules
from tests.support.families import families
from tests.support.upstream_rules import CORPUS

# --- hand-written trees


def module(name: str, cls: str, kind: str = "", weights: tuple = (), **more) -> ModuleInfo:
    """weights: (parameter, GGUF name, shape, bytes in the file)."""
    return ModuleInfo(
        name,
        (cls, "torch.nn.Module"),
        kind,
        weights={
            f"{name}.{own}": WeightInfo((tensor,), "q4_1", shape, nbytes)
            for own, tensor, shape, nbytes in weights
        },
        **more,
    )


def linear(name: str, tensor: str = "") -> ModuleInfo:
    weight = ("weight", tensor or f"{name}.gguf", (32, 32), 640)
    return module(name, "torch.nn.Linear", "linear", (weight,))


TREE = [
    module("", "m.Causal"),
    module("model", "m.Model", "model"),
    module("model.layers", "torch.nn.ModuleList"),
    module("model.layers.0", "m.Layer"),
    module("model.layers.0.self_attn", "m.Attention", "attention.gqa"),
    linear("model.layers.0.self_attn.q_proj"),
    module("model.layers.0.mlp", "m.Moe", "moe.block"),
    module(
        "model.layers.0.mlp.gate", "m.Router", "moe.router",
        (("weight", "gate", (4, 32), 512),),
        legacy_classes=("torch.nn.Linear", "ktransformers.models.modeling_deepseek.MoEGate"),
        aliases=("model.layers.0.block_sparse_moe.gate",),
    ),
    linear("lm_head", "shared"),
    module("model.rotary_emb", "m.Rotary", "rope",
           legacy_classes=("ktransformers.models.modeling_deepseek.DeepseekV2RotaryEmbedding",),
           aliases=("model.layers.0.self_attn.rotary_emb", "model.layers.1.self_attn.rotary_emb")),
]  # fmt: skip


def own(*rules: str) -> str:
    """Rules of our dialect from 'match -> operator[ extra]'."""
    out = ""
    for text in rules:
        match, _, replace = text.partition(" -> ")
        operator, _, extra = replace.partition(" ")
        out += f"- match: {{{match}}}\n  replace: {{operator: {operator}}}\n  why: x\n"
        out += f"  {extra}\n" if extra else ""
    return out


def upstream(*rules: str) -> str:
    """Rules of upstream's dialect from 'match -> class device[ extra]'."""
    out = ""
    for text in rules:
        match, _, replace = text.partition(" -> ")
        cls, _, rest = replace.partition(" ")
        device, _, extra = rest.partition(" ")
        cls = cls if cls == "default" else f"ktransformers.operators.{cls}"
        out += f"- match: {{{match}}}\n  replace: {{class: {cls}"
        out += f", kwargs: {{generate_device: '{device}'}}}}\n" if device else "}\n"
        out += f"  {extra}\n" if extra else ""
    return out


def planned(text: str, **context) -> dict[str, tuple]:
    """{module: (operator, backend, device, line of the rule)}."""
    made = plan(TREE, parse_rules(text, "f"), PlanContext(**context))
    return {
        row.module: (row.operator, row.backend, row.device, row.rule.line if row.rule else None)
        for row in made.rows
    }


def notes(text: str, **context) -> tuple[str, ...]:
    return plan(TREE, parse_rules(text, "f"), PlanContext(**context)).notes


def test_the_first_rule_wins_and_children_are_matched_on_their_own():
    rows = planned(
        own(
            "name: 'layers.0.self_attn$|rotary' -> default",
            "class: Linear, name: head -> default",
            "class: torch.nn.Linear -> linear",
        )
    )
    assert rows["model.layers.0.self_attn"] == ("default", "torch", "cpu", 1)
    assert rows["model.layers.0.self_attn.q_proj"] == ("linear", "cpu", "cpu", 7)
    assert rows["lm_head"] == ("default", "torch", "cpu", 4)


def test_containers_and_the_root_get_no_row():
    rows = planned(own("class: torch.nn.Linear -> linear"))
    assert not {"", "model.layers", "model.layers.0"} & rows.keys()


def test_unmatched_modules_stay_torch_and_are_told():
    text = own("class: torch.nn.Linear -> linear")
    assert planned(text)["model.layers.0.mlp.gate"] == ("default", "torch", "cpu", None)
    (note,) = notes(text)
    assert note == "f: no rule for 5 modules, the first is model; they run as plain torch modules"


def test_a_legacy_class_counts_in_upstreams_dialect_only():
    assert planned(own("class: torch.nn.Linear -> linear"))["model.layers.0.mlp.gate"][3] is None
    rows = planned(upstream("class: torch.nn.Linear -> linear.KTransformersLinear cpu"))
    assert rows["model.layers.0.mlp.gate"] == ("moe.router", "cpu", "cpu", 1)


def test_legacy_names_count_in_both_dialects():
    rows = planned(own("name: block_sparse_moe.gate -> moe.router"))
    assert rows["model.layers.0.mlp.gate"][0] == "moe.router"
    rows = planned(upstream("name: block_sparse_moe.gate -> gate.KMoEGate cpu"))
    assert rows["model.layers.0.mlp.gate"][0] == "moe.router"


def test_own_rules_that_do_nothing_are_errors():
    with pytest.raises(UserError, match=r"^f:4:3: matches no module of this model"):
        planned(own("class: torch.nn.Linear -> linear", "name: nothing -> linear"))
    with pytest.raises(
        UserError, match=r"^f:4:3: every module it matches is taken by the rule at line 1"
    ):
        planned(own("class: torch.nn.Linear -> linear", "name: lm_head -> default"))
    assert planned(own("name: lm_head -> linear", "name: nothing -> linear optional: true"))


def test_own_operators_must_fit():
    with pytest.raises(UserError) as caught:
        planned(own("name: mlp.gate -> linear"))
    assert str(caught.value) == (
        "f:1:3: linear does not fit model.layers.0.mlp.gate (Router, which takes moe.router); "
        "narrow the match"
    )
    with pytest.raises(UserError, match=r"does not fit model.layers \(ModuleList, which holds"):
        planned(own("name: '^model.layers$' -> linear"))


def test_default_takes_a_whole_subtree():
    made = plan(TREE, parse_rules(own(
        "name: 'layers.0$' -> default recursive: false", "name: lm_head -> linear"
    ), "f"))  # fmt: skip
    row = made.row("model.layers.0")
    assert row.subtree and row.operator == "default"
    assert row.tensors == ("model.layers.0.self_attn.q_proj.gguf", "gate")
    assert row.nbytes == 4 * (32 * 32 + 4 * 32)
    assert not [r for r in made.rows if r.module.startswith("model.layers.0.")]
    assert made.row("lm_head").operator == "linear"  # what follows is looked at again
    with pytest.raises(UserError, match="attention.gqa works through the operators of its child"):
        planned(own("name: self_attn$ -> attention.gqa recursive: false"))


def test_upstreams_default_is_the_natural_operator():
    rows = planned(upstream("name: '.*' -> default cpu"))
    assert rows["model.layers.0.self_attn"][:2] == ("attention.gqa", "cpu")
    assert rows["lm_head"][:2] == ("linear", "cpu")
    assert planned(upstream("name: lm_head -> default cpu"))["model"] == (
        "model",
        "cpu",
        "cpu",
        None,
    )


def test_upstreams_recursive_false_hides_children_from_rules():
    text = upstream("name: self_attn$ -> attention.KLlamaAttention cpu", "name: q_proj -> default")
    stopped = text.replace("- match: {name: q_proj}", "  recursive: False\n- match: {name: q_proj}")
    assert planned(text)["model.layers.0.self_attn.q_proj"][3] == 3
    assert planned(stopped)["model.layers.0.self_attn.q_proj"] == ("linear", "cpu", "cpu", None)
    quoted = stopped.replace("False", '"False"')  # text is true, as in upstream
    assert planned(quoted)["model.layers.0.self_attn.q_proj"][3] == 4


def test_upstream_rules_that_do_nothing_give_one_line():
    text = upstream(
        "name: lm_head -> linear.KTransformersLinear cpu",
        "name: nothing -> default cpu",
        "name: lm_head -> default cpu",
    )
    assert notes(text) == (
        "f:3: matches no module of this model",
        "f:5: every module it matches is taken by the rule at line 1",
    )


def test_one_rotary_embedding_answers_for_all_layers():
    """Both rules name a layer whose rotary embedding is the model's one today: both count."""
    text = upstream(
        *(
            f"name: '^model.layers.{layer}.', class: "
            "ktransformers.models.modeling_deepseek.DeepseekV2RotaryEmbedding"
            f" -> RoPE.RotaryEmbedding cuda:{layer}"
            for layer in (0, 1)
        )
    )
    assert notes(text, device_map={"cuda": "cpu"}) == ()
    assert planned(text)["model.rotary_emb"] == ("rope", "cpu", "cpu", 1)


def test_upstream_operators_must_fit_too():
    with pytest.raises(UserError, match=r"^f:1:3: .*KDeepseekV2Attention does not fit"):
        planned(upstream("name: self_attn$ -> attention.KDeepseekV2Attention cpu"))


def test_a_torch_op_makes_a_plain_module():
    text = (
        "- match: {name: lm_head}\n  replace:\n"
        "    class: ktransformers.operators.linear.KTransformersLinear\n"
        "    kwargs: {generate_device: cpu, generate_op: KLinearTorch}\n"
    )
    assert planned(text)["lm_head"] == ("default", "torch", "cpu", 1)


def test_devices():
    text = upstream("name: lm_head -> default cuda:1", "name: q_proj -> default cuda")
    assert planned(text)["lm_head"][2] == "cpu"
    assert notes(text) == (
        "f: cuda, cuda:1 means cpu here: this machine has no CUDA device "
        "(--device-map cuda=cpu says so without this line)",
    )
    assert notes(text, device_map={"cuda": "cpu"}) == ()
    assert len(notes(text, device_map={"cuda:1": "cpu"})) == 1
    xpu = upstream("name: lm_head -> default xpu")
    with pytest.raises(UserError, match=r"^f:1:3: unknown device 'xpu'.* --device-map xpu=cpu"):
        planned(xpu)
    assert planned(xpu, device_map={"xpu": "cpu"})["lm_head"][2] == "cpu"


def test_device_maps_from_the_command_line():
    assert parse_device_map(["cuda:0=cpu,cuda:1=cpu", "npu = cpu"]) == {
        "cuda:0": "cpu", "cuda:1": "cpu", "npu": "cpu",
    }  # fmt: skip
    for bad in ("cuda", "=cpu", "cuda=gpu"):
        with pytest.raises(UserError, match="write DEVICE=DEVICE"):
            parse_device_map([bad])


def test_bytes_are_the_files_or_float32_and_shared_tensors_count_once():
    tree = [*TREE, linear("twin", "shared")]
    made = plan(tree, parse_rules(own("class: torch.nn.Linear -> linear"), "f"))
    assert made.row("lm_head").nbytes == 640 and made.row("model.layers.0.mlp.gate").nbytes == 512
    assert made.device_bytes() == {"cpu": 640 + 640 + 4 * 4 * 32}
    made = plan(tree, parse_rules(own("class: torch.nn.Linear -> default"), "f"))
    assert made.row("lm_head").nbytes == 4 * 32 * 32


def test_placements_and_lowering():
    made = plan(TREE, parse_rules(own("name: '^model$' -> model", "name: lm_head -> linear"), "f"))
    assert made.lowered and [row.module for row in made.placements] == ["lm_head"]
    assert not plan(TREE, parse_rules(own("name: lm_head -> linear"), "f")).lowered


def test_an_operator_follows_a_part_it_needs():
    text = own(
        "name: q_proj -> default",
        "name: self_attn$ -> attention.gqa",
        "class: Linear -> linear",
        "class: Rotary -> rope",
        "name: '.*' -> default",
    )
    assert planned(text)["model.layers.0.self_attn"] == ("default", "torch", "cpu", 4)
    (note,) = notes(text)
    assert note == (
        "f: 1 module has to be plain torch, the first is model.layers.0.self_attn, because "
        "model.layers.0.self_attn.q_proj is"
    )
    text = text.replace("{name: q_proj}", "{name: rotary}")
    text = text.replace("- match: {class: Rotary}\n  replace: {operator: rope}\n  why: x\n", "")
    assert planned(text)["model.layers.0.self_attn"][0] == "default"
    assert "because model.rotary_emb is" in notes(text)[0]


def test_a_slow_pattern_is_named():
    text = own(r"name: '^(a|a)*(b|b)*\1\2(x+x+)+y$', class: Linear -> linear")
    tree = [*TREE, linear("a" * 60 + "x" * 60)]
    with pytest.raises(UserError, match=r"^f:1:10: pattern .* needs more than 1 s"):
        plan(tree, parse_rules(text, "f"))


# --- transformers' trees


@functools.cache
def tree_of(name: str):
    """(tree, family) of a miniature's configuration on the meta device."""
    import torch
    import transformers

    from ktransformers.optimize.tree import describe

    chosen = families()[name]
    with torch.device("meta"):
        config = getattr(transformers, f"{chosen.model}Config")(**chosen.config)
        model = getattr(transformers, f"{chosen.model}ForCausalLM")(config)
    family = family_for(config.model_type)
    return describe(model, family), family


@pytest.mark.parametrize("name", families())
def test_shipped_rules_cover_every_module(name):
    tree, family = tree_of(name)
    made = plan(tree, load_rules(shipped_rules(family)))
    rows = {row.module: row for row in made.rows}
    for info in tree:
        if info.weights or info.kind:
            row = rows[info.name]
            assert row.rule is not None and row.why, info.name
            assert (row.operator, row.backend) == (info.kind, "cpu"), info.name
            assert set(row.parameters) == set(info.weights)
    assert made.notes == () and made.lowered
    parameters = [p for row in made.rows for p in row.parameters]
    assert len(parameters) == len(set(parameters))
    assert sum(row.nbytes for row in made.rows) > 0


def test_every_family_has_rules_and_every_rule_file_a_family():
    files = {family.rule_file for family in project_families()}
    folder = shipped_rules(project_families()[0]).parent
    assert {path.name for path in folder.glob("*.yaml")} == files
    for file in files:
        rules = load_rules(folder / file)
        assert rules.dialect == "own" and all(len(rule.why) > 20 for rule in rules.rules)
        assert (folder / file).read_text().startswith("# ")


@pytest.mark.parametrize(
    "name, module, kind",
    [
        ("llama", "model.layers.1.self_attn", "attention.gqa"),
        ("deepseek_v3", "model.layers.1.self_attn", "attention.mla"),
        ("deepseek_v3", "model.layers.0.mlp", "mlp.swiglu"),
        ("deepseek_v3", "model.layers.1.mlp", "moe.block"),
        ("deepseek_v3", "model.layers.1.mlp.shared_experts", "mlp.swiglu"),
        ("deepseek_v2", "model.layers.1.mlp.gate", "moe.router"),
        ("qwen2moe", "model.layers.0.mlp.shared_expert_gate", "linear"),
        ("qwen3moe", "model.layers.0.mlp.experts", "moe.experts"),
        ("qwen3", "model.layers.0.self_attn.q_norm", "norm.rms"),
        ("mixtral", "model.embed_tokens", "embedding"),
        ("mixtral", "model.rotary_emb", "rope"),
        ("mixtral", "model.layers.0.mlp.experts.act_fn", ""),
    ],
)
def test_kinds(name, module, kind):
    tree, _ = tree_of(name)
    assert {info.name: info.kind for info in tree}[module] == kind


def test_subclasses_match_the_classes_they_come_from():
    """As isinstance does: torch.nn.Linear takes every subclass, torch.nn.Module takes all."""
    import torch

    from ktransformers.optimize.tree import describe

    class Special(torch.nn.Linear):
        pass

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("Config", (), {"num_hidden_layers": 0, "to_dict": lambda self: {}})()
            self.special = Special(4, 4, bias=False, device="meta")

    (_, special) = describe(Holder(), family_for("llama"))
    assert special.kind == "linear" and special.class_name == "Special"
    for name in ("torch.nn.Linear", "torch.nn.modules.linear.Linear", "Linear", "torch.nn.Module"):
        assert special.has_class(name, legacy=False), name
    assert not special.has_class("torch.nn.Embedding", legacy=True)


def test_the_routers_bias_is_a_weight_and_rotary_buffers_are_not():
    modules = {info.name: info for info in tree_of("deepseek_v3")[0]}
    gate = "model.layers.1.mlp.gate"
    assert set(modules[gate].weights) == {f"{gate}.weight", f"{gate}.e_score_correction_bias"}
    assert not modules["model.rotary_emb"].weights


def test_trees_are_in_pre_order():
    for name in families():
        seen = set()
        for info in tree_of(name)[0]:
            parent = info.name.rpartition(".")[0]
            assert info.name == "" or parent in seen
            seen.add(info.name)


@pytest.mark.parametrize("name", CORPUS)
def test_upstream_like_files_match_and_plan_alike(name):
    """Every rule matches something, and what comes out is what our own rules give."""
    miniature, text = CORPUS[name]
    tree, family = tree_of(miniature)
    rules = parse_rules(text, name)
    assert rules.dialect == "upstream" and rules.notes == ()
    made = plan(tree, rules, PlanContext(device_map={"cuda": "cpu"}))
    assert made.notes == ()
    ours = plan(tree, load_rules(shipped_rules(family)))
    assert [(row.module, row.operator, row.backend) for row in made.rows] == [
        (row.module, row.operator, row.backend) for row in ours.rows
    ]


def test_the_corpus_notices_a_lost_legacy_name():
    """Without the names and classes of upstream's models the same files match less."""
    import dataclasses

    lost = 0
    for miniature, text in CORPUS.values():
        tree = [
            dataclasses.replace(info, aliases=(), legacy_classes=())
            for info in tree_of(miniature)[0]
        ]
        made = plan(tree, parse_rules(text, "f"), PlanContext(device_map={"cuda": "cpu"}))
        lost += len(made.notes)
    assert lost > 20


# --- reports


def test_a_plan_is_readable():
    tree, family = tree_of("qwen3moe")
    made = plan(tree, load_rules(shipped_rules(family)))
    line = report.summary(made)
    assert "\n" not in line and "qwen3moe.yaml" in line and "on cpu" in line
    shown = {entry.cells()[0]: entry.cells() for entry in report.lines(made)}
    experts = shown["model.layers.{0-1}.mlp.experts"]
    assert experts[1].startswith("qwen3moe.yaml:") and experts[2:4] == ("moe.experts", "cpu")
    every = {entry.cells()[0] for entry in report.lines(made, every_layer=True)}
    assert {"model.layers.0.mlp.experts", "model.layers.1.mlp.experts"} <= every
    assert len(every) == len(made.rows)
    total = sum(entry.nbytes for entry in report.lines(made))
    assert total == sum(row.nbytes for row in made.rows)


def test_json_has_everything(capsys):
    made = plan(TREE, parse_rules(own("name: lm_head -> linear"), "f"))
    document = json.loads(json.dumps(report.to_json(made)))
    (row,) = [row for row in document["rows"] if row["module"] == "lm_head"]
    assert row["rule"] == "f:1:3" and row["operator"] == "linear" and row["bytes"] == 640
    assert row["tensors"] == ["shared"] and document["notes"] == list(made.notes)
    report.print_plan(made)
    printed = capsys.readouterr().out
    assert "lm_head" in printed and "total" in printed and report.summary(made) in printed


@pytest.mark.parametrize(
    "numbers, text", [([3], "3"), ([0, 1, 2], "{0-2}"), ([5, 0, 1, 7, 8], "{0-1,5,7-8}")]
)
def test_ranges(numbers, text):
    assert report.ranges(numbers) == text


@pytest.mark.parametrize(
    "count, text", [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (7 * 2**30, "7.0 GiB")]
)
def test_sizes(count, text):
    assert report.size_text(count) == text


def test_planning_imports_no_torch():
    code = (
        "import sys\n"
        "import ktransformers.optimize.plan, ktransformers.optimize.report\n"
        "import ktransformers.optimize.tree, ktransformers.optimize.devices\n"
        "import ktransformers.cli.plan_command\n"
        "from ktransformers.optimize.rules import load_rules\n"
        "from ktransformers.optimize.shipped import FOLDER\n"
        "assert [load_rules(path) for path in FOLDER.glob('*.yaml')]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
