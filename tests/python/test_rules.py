"""Reading rule files: both dialects, every complaint with its place."""

import re
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ktransformers.errors import UserError
from ktransformers.operators.registry import Registry, UpstreamOp, operators
from ktransformers.optimize.patterns import NamePattern, PatternError
from ktransformers.optimize.rules import load_rules, parse_rules


@dataclass(frozen=True)
class Options:
    rows: int = 16
    mode: Literal["fast", "exact"] = "fast"
    scale: float | None = None
    check: bool = False

    def __post_init__(self):
        if self.rows % 16:
            raise ValueError(f"rows is {self.rows}, it must be a multiple of 16")


def registry() -> Registry:
    made = Registry()
    made.register("linear", backend="cpu", options=Options, factory="nowhere:Linear")
    made.register("linear", backend="torch", factory="nowhere:Plain")
    made.register("default", backend="torch", kind="", factory="nowhere:Default")
    return made


def own(text: str):
    return parse_rules(text, "f", registry())


RULE = "- match: {name: 'x'}\n  replace: {operator: linear}\n  why: a reason\n"


def test_a_rule_of_our_dialect():
    rules = own(
        "- match:\n"
        "    name: ^model\\.layers\n"
        "    class: [torch.nn.Linear, Other]\n"
        "  replace: {operator: linear, backend: cpu, options: {rows: 32, scale: 2}}\n"
        "  why: >\n"
        "    two\n"
        "    lines\n"
        "  optional: yes\n"
        "  recursive: no\n"
    )
    assert rules.dialect == "own" and rules.notes == ()
    (rule,) = rules.rules
    assert (rule.operator, rule.backend, rule.why) == ("linear", "cpu", "two lines")
    assert rule.options == Options(rows=32, scale=2.0) and isinstance(rule.options.scale, float)
    assert rule.match.classes == ("torch.nn.Linear", "Other") and not rule.match.legacy
    assert rule.match.name.search("model.layers.3") and not rule.match.name.search("xmodel.layers")
    assert rule.optional and not rule.recursive
    assert str(rule.place) == "f:1:3" and rule.place.short == "f:1"


def test_defaults_of_our_dialect():
    (rule,) = own(RULE).rules
    assert rule.backend == "cpu" and rule.options == Options()
    assert rule.recursive and not rule.optional and rule.match.classes == ()


OWN_ERRORS = [
    ("", "f: holds no rules"),
    ("[]", "f: holds no rules"),
    ("a: 1", "f:1:1: a rule file must be a list"),
    ("- 1", "f:1:3: a rule must be a map, not 1"),
    ("- match: {name: x}", "f:1:3: a rule needs replace.operator"),
    (RULE + "  wy: z\n", "f:4:3: unknown key 'wy'; did you mean why?"),
    (RULE + "  1: z\n", "f:4:3: unknown key 1"),
    (RULE.replace("name", "nme"), "f:1:11: unknown key 'nme'; did you mean name?"),
    (RULE.replace("linear", "liner"), "f:2:23: unknown operator 'liner'; did you mean linear?"),
    (RULE.replace("linear", "zzz"), "f:2:23: unknown operator 'zzz'; known: linear, default"),
    (RULE.replace("linear", "1"), "f:2:23: operator must be text, not 1"),
    (RULE.replace("linear", "linear, gpu: 0"), "f:2:31: unknown key 'gpu'"),
    (
        RULE.replace("linear", "linear, backend: cuda"),
        "f:2:40: operator linear has no backend 'cuda' in this build; it has: cpu, torch",
    ),
    (RULE.replace("  why: a reason\n", ""), "f:1:3: the rule has no why"),
    (RULE.replace("a reason", "' '"), "f:1:3: the rule has no why"),
    (RULE.replace("a reason", "3"), "f:3:8: why must be text, not 3"),
    (RULE.replace("{name: 'x'}", "{}"), "f:1:10: match needs a name pattern or a class"),
    (RULE.replace("{name: 'x'}", "x"), "f:1:10: match must be a map, not 'x'"),
    (RULE.replace("'x'", "null"), "f:1:17: name must be text, not None"),
    (RULE.replace("'x'", "'([4-10])'"), "f:1:17: bad pattern '([4-10])'"),
    (RULE.replace("'x'", "'(a'"), "f:1:17: bad pattern '(a'"),
    (RULE.replace("'x'", "'" + "x" * 1025 + "'"), "f:1:17: the pattern has 1025 characters"),
    (RULE.replace("name: 'x'", "class: []"), "f:1:18: class lists no class"),
    (RULE.replace("name: 'x'", "class: [1]"), "f:1:19: class must be text"),
    (RULE + "  optional: 'yes'\n", "f:4:13: optional must be true or false, not 'yes'"),
    (RULE + "  recursive: 0\n", "f:4:14: recursive must be true or false, not 0"),
    (RULE.replace("linear", "linear, options: {row: 3}"),
     "f:2:41: operator linear has no option 'row'; did you mean rows?"),
    (RULE.replace("linear", "linear, options: {rows: '16'}"),
     "f:2:47: option rows must be an integer, not '16'"),
    (RULE.replace("linear", "linear, options: {rows: true}"),
     "f:2:47: option rows must be an integer, not True"),
    (RULE.replace("linear", "linear, options: {rows: 17}"), "f:2:31: rows is 17"),
    (RULE.replace("linear", "linear, options: {mode: slow}"),
     "f:2:47: option mode must be fast or exact, not 'slow'"),
    (RULE.replace("linear", "linear, options: {scale: a}"),
     "f:2:48: option scale must be a number or null"),
    (RULE.replace("linear", "linear, options: {check: 1}"),
     "f:2:48: option check must be true or false, not 1"),
    (RULE.replace("linear", "linear, options: [1]"), "f:2:40: options must be a map"),
    (RULE.replace("linear", "default, options: {rows: 1}"),
     "f:2:42: operator default has no option 'rows'; known: none"),
    (RULE + "- match: {name: x}\n  replace: {class: default}\n",
     "f:2:13: replace.operator and replace.class (f:5) are two dialects"),
    ("- match: {name: x}\n  match: {name: y}\n", "f:2:3: duplicate key match"),
]  # fmt: skip


@pytest.mark.parametrize("text, message", OWN_ERRORS)
def test_errors_of_our_dialect(text, message):
    with pytest.raises(UserError) as caught:
        own(text)
    assert str(caught.value).startswith(message), caught.value
    assert "\n" not in str(caught.value)


LINEAR = "ktransformers.operators.linear.KTransformersLinear"
EXPERTS = "ktransformers.operators.experts.KTransformersExperts"


def upstream(kwargs: str = "", operator: str = LINEAR, rule: str = "", match: str = "name: x"):
    text = f"- match: {{{match}}}\n  replace:\n    class: {operator}\n"
    text += f"    kwargs:\n      {kwargs}\n" if kwargs else ""
    return parse_rules(text + rule, "f")


def test_a_rule_of_upstreams_dialect():
    rules = upstream(
        'generate_device: "cuda:1"\n      prefill_device: cuda\n      generate_op: KLinearMarlin\n'
        "      prefill_op: KLinearTorch\n      out_device: cpu\n      group_size: 64"
    )
    assert rules.dialect == "upstream" and rules.notes == ()
    (rule,) = rules.rules
    assert (rule.operator, rule.backend, rule.device) == ("linear", None, "cuda:1")
    assert rule.written == LINEAR and rule.match.legacy and rule.recursive


def test_what_upstream_ignores_gives_one_line_each():
    rules = parse_rules(
        "- match: {name: x, colour: red}\n"
        "  why: not read there\n"
        "  replace:\n"
        "    class: default\n"
        "    device: cpu\n"
        "    kwargs: {generate_device: cpu, speed: 3}\n"
        "  recursive: 'False'\n",
        "f",
    )
    assert rules.notes == (
        "f:2: ignored key why",
        "f:1: ignored match key colour",
        "f:5: replace.device, which upstream never reads, is taken as generate_device and "
        "prefill_device",
        "f:6: ignored kwarg speed of default",
        "f:7: recursive is the text 'False', which counts as true; write it without quotes",
    )
    assert rules.rules[0].recursive


@pytest.mark.parametrize(
    "written, recursive",
    [("False", False), ("no", False), ("0", False), ("", False), ("true", True), ("1", True),
     ('"False"', True), ('""', False)],
)  # fmt: skip
def test_recursive_is_pythons_truth(written, recursive):
    assert upstream(rule=f"  recursive: {written}\n").rules[0].recursive is recursive


@pytest.mark.parametrize(
    "op, operator, backend",
    [("KLinearMarlin", LINEAR, None), ("VLinearMarlin", LINEAR, None),
     ("KLinearTorch", LINEAR, "torch"), ("QuantizedLinearTorch", LINEAR, "torch"),
     ("KExpertsCPU", EXPERTS, None), ("KExpertsTorch", EXPERTS, "torch"),
     ('"None"', EXPERTS, None), ("None", EXPERTS, None), ("null", EXPERTS, None)],
)  # fmt: skip
def test_generate_op_decides_the_backend(op, operator, backend):
    (rule,) = upstream(f"generate_op: {op}", operator).rules
    assert rule.backend == backend
    (rule,) = upstream(f"prefill_op: {op}", operator).rules
    assert rule.backend is None  # both phases run the generate op


UPSTREAM_ERRORS = [
    (dict(operator="os.system"), "f:3:12: unknown class 'os.system'"),
    (dict(operator=LINEAR[:-1]), f"f:3:12: unknown class '{LINEAR[:-1]}'; did you mean {LINEAR}?"),
    (dict(operator="null"), "f:3:12: class must be text"),
    (
        dict(operator="ktransformers.operators.balance_serve_attention.KQwen3NextGatedDeltaNet"),
        "f:3:12: ktransformers.operators.balance_serve_attention.KQwen3NextGatedDeltaNet belongs",
    ),
    (dict(kwargs="generate_op: KLinearX"), "f:5:20: unknown op 'KLinearX' for linear"),
    (dict(kwargs="prefill_op: KExpertsCPU"), "f:5:19: unknown op 'KExpertsCPU' for linear"),
    (dict(kwargs="generate_device: 'cuda: 0'"), "f:5:24: 'cuda: 0' is no device"),
    (dict(kwargs="generate_device: 0"), "f:5:24: generate_device must be text, not 0"),
    (dict(kwargs="[1]"), "f:5:7: kwargs must be a map"),
    (dict(match="class: torch.nn.Liner"), "f:1:18: unknown class 'torch.nn.Liner'; did you mean"),
    (dict(match="class: os.path"), "f:1:18: unknown class 'os.path'"),
    (dict(match="colour: red"), "f:1:10: match needs a name or a class"),
    (dict(match="name: '([4-10])'"), "f:1:17: bad pattern"),
    (
        dict(operator="ktransformers.operators.models.KDeepseekV2Model",
             kwargs="transfer_map: {a: cpu}"),
        "f:5:21: transfer_map: 'a' is no layer number",
    ),
    (
        dict(operator="ktransformers.operators.models.KDeepseekV2Model",
             kwargs="transfer_map: {30: 1}"),
        "f:5:26: 30 must be text, not 1",
    ),
]  # fmt: skip


@pytest.mark.parametrize("parts, message", UPSTREAM_ERRORS)
def test_errors_of_upstreams_dialect(parts, message):
    with pytest.raises(UserError) as caught:
        upstream(**parts)
    assert str(caught.value).startswith(message), caught.value


@pytest.mark.parametrize(
    "text, message",
    [
        ("- replace: {class: default}\n", "f:1:3: the rule has no match"),
        (
            "- match: {name: x}\n  replace: {class: default}\n- match: {name: x}\n",
            "f:3:3: the rule has no replace",
        ),
    ],
)
def test_a_rule_needs_both_parts(text, message):
    with pytest.raises(UserError, match=message):
        parse_rules(text, "f")


def test_a_replace_without_class_is_default():
    rules = parse_rules(
        "- match: {name: x}\n  replace: {kwargs: {generate_device: cpu}}\n"
        "- match: {name: y}\n  replace: {class: default}\n",
        "f",
    )
    assert [rule.operator for rule in rules.rules] == ["default", "default"]


# One representative of every row of the tables of upstream's rule files, and every renamed or
# misspelt name older tags shipped.
SHIPPED_NAMES = {
    "linear": "linear.KTransformersLinear linear.KTransformerLinear",
    "moe.experts": "experts.KTransformersExperts experts.KTransformersExpertsV2"
    " experts.KGlm4Experts experts.KTransformersMLPExpert",
    "attention.mla": "attention.KDeepseekV2Attention balance_serve_attention.flashinfer_attn"
    " attention.DeepseekV2AttentionInjected attention.flashinfer_attn",
    "attention.gqa": "attention.KLlamaAttention balance_serve_attention.KQwen2MoeAttention"
    " balance_serve_attention.KQwen3MoeAttention balance_serve_attention.KGlm4MoeAttention"
    " balance_serve_attention.KSmallthinkerAttention",
    "moe.router": "gate.KMoEGate gate.KMoEGateDeepSeekV3",
    "rope": "RoPE.YarnRotaryEmbeddingV3 RoPE.YarnRotaryEmbedding RoPE.RotaryEmbedding"
    " RoPE.RotaryEmbeddingV2 RoPE.RotaryEmbeddingV3 RoPE.RotaryEmbeddingV4"
    " RoPE.KMoEGateDeepSeekV3 RoPE.KQwen3MoeRotaryEmbedding"
    " RoPE.KGlm4MoeRotaryEmbedding RoPE.KSmallthinkerRotaryEmbedding",
    "moe.block": "experts.KDeepseekV3MoE experts.KDeepseekV3MoEV2 experts.KDeepseekV2MoE"
    " experts.KQwen2MoeSparseMoeBlock experts.KQwen2MoeSparseMoeBlockV2"
    " experts.KQwen3MoeSparseMoeBlockV2 experts.KMistralSparseMoEBlock"
    " experts.KMisrtalSparseMoEBlock experts.KGlm4MoeMoE experts.DeepseekV2MoEInjected"
    " experts.Qwen2MoeSparseMoeBlockInjected",
    "model": "models.KDeepseekV2Model models.KQwen2MoeModel models.KLlamaModel"
    " layer_wise_prefill.DeepseekV2ModelPerLayerPrefill"
    " layer_wise_prefill.Qwen2MoeModelPerLayerPrefill",
    "mlp.swiglu": "mlp.kDeepseekV3MLP mlp.KQwen2MoeMLP mlp.KGlm4MoeMLP",
    "norm.rms": "layernorm.RMSNorm layernorm.KQwen2MoeRMSNorm layernorm.KQwen3MoeRMSNorm"
    " layernorm.KGlm4MoeRMSNorm layernorm.KSmallthinkerRMSNorm",
}


@pytest.mark.parametrize(
    "name, operator",
    [(name, operator) for operator, names in SHIPPED_NAMES.items() for name in names.split()],
)
def test_upstreams_names_have_operators(name, operator):
    assert operators().upstream_class(f"ktransformers.operators.{name}") == operator


def test_upstreams_op_names():
    for op in "KLinearMarlin KLinearTorch VLinearMarlin KLinearFP8 KLinearCPUInfer".split():
        assert operators().upstream_op(op).operator == "linear"
    for op in "KExpertsCPU KExpertsTorch KExpertsMarlin MLPCPUExperts MLPExpertsTorch".split():
        assert operators().upstream_op(op).operator == "moe.experts"


def test_the_registry_refuses_doubles_and_returns_what_it_registers():
    made = registry()

    @made.register("norm", backend="cpu", upstream=("a.b",))
    class Norm:
        pass

    assert Norm is not None and made.lookup("norm", "cpu").load() is Norm
    assert made.backends("linear") == ("cpu", "torch") and made.backends("none") == ()
    with pytest.raises(ValueError, match="twice"):
        made.register("linear", backend="cpu", factory="x:Y")
    with pytest.raises(ValueError, match="two operators"):
        made.register("other", backend="cpu", upstream=("a.b",), factory="x:Y")
    made.alias_op("Op", UpstreamOp("norm"))
    with pytest.raises(ValueError, match="named twice"):
        made.alias_op("Op", UpstreamOp("linear"))
    with pytest.raises(KeyError):
        made.lookup("norm", "cuda")


def test_a_factory_named_by_text_is_imported_on_use():
    made = Registry()
    made.register("x", backend="cpu", factory="collections:OrderedDict")
    import collections

    assert made.lookup("x", "cpu").load() is collections.OrderedDict


def test_a_hostile_pattern_is_stopped():
    pattern = NamePattern(r"^(a|a)*(b|b)*\1\2(x+x+)+y$")
    start = time.process_time()
    with pytest.raises(PatternError, match="needs more than 1 s; simplify it"):
        for _ in range(1000):
            pattern.search("a" * 60 + "x" * 60)
    assert time.process_time() - start < 10


def test_patterns_search_as_re_does():
    look_ahead = NamePattern(r"^model\.layers\.(?!.*self_attn\.kv_b_proj).*$")
    assert look_ahead.search("model.layers.0.mlp.up_proj")
    assert not look_ahead.search("model.layers.0.self_attn.kv_b_proj")
    assert NamePattern("norm").search("model.layers.0.input_layernorm")  # unanchored
    assert NamePattern("^model.embed_tokens").search("modelXembed_tokens")


def test_files(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("- match: {class: torch.nn.Linear}\n  replace: {operator: linear}\n  why: x\n")
    assert load_rules(path).rules[0].place.file == str(path)
    with pytest.raises(UserError, match="No such file"):
        load_rules(tmp_path / "none.yaml")
    path.write_text("- [")
    with pytest.raises(UserError, match=rf"^{path}:1:"):
        load_rules(path)


def test_the_rules_shown_in_the_documentation_are_rules():
    root = Path(__file__).parents[2]
    page = (root / "docs/rules.md").read_text()
    shown = re.findall(r"```yaml\n(.*?)```", page, re.S)
    indented = re.findall(r"(?:^    .*\n)+", (root / "README.md").read_text(), re.M)
    starts = ("    - match", "    - {match")
    shown += [textwrap.dedent(text) for text in indented if text.startswith(starts)]
    assert len(shown) >= 3
    for text in shown:
        assert parse_rules(text).dialect == "own"


def test_no_torch_is_imported_to_read_rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("- match: {name: x}\n  replace: {class: default}\n")
    code = (
        "import sys\n"
        "from ktransformers.optimize.rules import load_rules\n"
        f"assert load_rules({str(path)!r}).dialect == 'upstream'\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
