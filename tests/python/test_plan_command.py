"""`ktransformers plan` on miniature files, and rules that really move a layer."""

import json
import subprocess
import sys

import pytest

from ktransformers.checkpoint.gguf import open_model
from ktransformers.cli import plan_command
from ktransformers.cli.main import main
from ktransformers.errors import UserError
from ktransformers.optimize.shipped import FOLDER
from tests.support.families import families
from tests.support.miniatures import miniature, write


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Miniature name -> GGUF file, made when asked for."""
    folder, made = tmp_path_factory.mktemp("miniatures"), {}

    def get(name: str):
        if name not in made:
            made[name] = write(miniature(name, types="Q4_0"), folder / f"{name}.gguf")
        return made[name]

    return get


def planned(capsys, path, **options) -> dict:
    plan_command.run(str(path), as_json=True, **options)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", families())
def test_every_tensor_of_a_file_is_in_its_plan(name, files, capsys):
    document = planned(capsys, files(name))
    assert document["notes"] == []
    named = {tensor for row in document["rows"] for tensor in row["tensors"]}
    gguf = open_model(files(name))
    left = set(gguf.tensors) - named
    assert left <= {"rope_freqs.weight"}  # read by the rotary embedding, no parameter of it
    held = sum(info.nbytes for info in gguf.tensors.values() if info.name not in left)
    assert document["device_bytes"] == {"cpu": held}


def test_the_table(files, capsys):
    plan_command.run(str(files("deepseek_v3")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["module", "rule", "operator", "device", "bytes"]
    (experts,) = [line for line in lines if ".mlp.experts" in line]
    assert experts.split()[0] == "model.layers.{1-2}.mlp.experts"
    assert "deepseek2.yaml:" in experts and "moe.experts" in experts and "KiB" in experts
    assert lines[-2].startswith("total") and "modules planned by deepseek2.yaml" in lines[-1]
    plan_command.run(str(files("deepseek_v3")), every_layer=True)
    assert "model.layers.2.mlp.experts" in capsys.readouterr().out


def test_one_edited_line_moves_a_layer(files, capsys, tmp_path):
    """The README's example: one more rule on top, and layer 1's MLP is a plain torch module."""
    shipped = (FOLDER / "qwen3.yaml").read_text()
    moved = tmp_path / "moved.yaml"
    moved.write_text(
        shipped.replace(
            "- match: {class: Qwen3MLP}",
            "- match: {name: '^model\\.layers\\.1\\.mlp$'}\n"
            "  replace: {operator: default}\n"
            "  recursive: false\n"
            "  why: to compare\n\n"
            "- match: {class: Qwen3MLP}",
        )
    )
    before = {row["module"]: row for row in planned(capsys, files("qwen3"))["rows"]}
    document = planned(capsys, files("qwen3"), optimize_config_path=str(moved))
    after = {row["module"]: row for row in document["rows"]}
    mlp = "model.layers.1.mlp"
    assert after[mlp]["operator"] == "default" and after[mlp]["subtree"]
    assert after[mlp]["bytes"] > before[f"{mlp}.up_proj"]["bytes"] * 3
    assert set(before) - set(after) == {f"{mlp}.{part}_proj" for part in ("gate", "up", "down")}
    assert after["model.layers.0.mlp"]["operator"] == "mlp.swiglu"


def test_an_upstream_file_plans_with_a_device_map(files, capsys, tmp_path):
    from tests.support.upstream_rules import CORPUS

    path = tmp_path / "upstream.yaml"
    path.write_text(CORPUS["v3"][1])
    document = planned(capsys, files("deepseek_v3"), optimize_config_path=str(path))
    (note,) = document["notes"]
    assert "cuda" in note and "means cpu here" in note
    document = planned(
        capsys, files("deepseek_v3"), optimize_config_path=str(path), device_map=["cuda=cpu"]
    )
    assert document["notes"] == [] and document["dialect"] == "upstream"


@pytest.mark.parametrize(
    "rules, message",
    [
        ("- match: [", "rules.yaml:1:"),
        (
            "- match: {name: x}\n  replace: {operator: liner}\n  why: x\n",
            "rules.yaml:2:23: unknown operator 'liner'; did you mean linear?",
        ),
        (
            "- match: {name: x}\n  replace: {class: os.system}\n",
            "rules.yaml:2:20: unknown class 'os.system'",
        ),
    ],
)
def test_errors_in_rules_come_before_torch(rules, message, files, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(rules)
    code = (
        "import sys\n"
        "from ktransformers.cli.plan_command import run\n"
        "from ktransformers.errors import UserError\n"
        "try:\n"
        "    run(sys.argv[1], sys.argv[2])\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(files("llama")), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert message in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("kv_type", "told"),
    [
        ("fp9", "--kv_type fp9: no cache type; choose i16, f16, bf16, f32, q8_0"),
        ("f16+", "--kv_type f16+: no cache type"),
        ("fp8", "kv_type='fp8' is for the cache of layers on a card, and none is there"),
    ],
)
@pytest.mark.parametrize("way", [["--fit"], ["--no-fit"]])
def test_a_cache_type_that_cannot_be_is_one_line(kv_type, told, way, files, tmp_path, capsys):
    machine = tmp_path / "machine.yaml"  # without GPUs
    machine.write_text("ram_gb: 64\nread_gb_per_s: 9\nint8_tops: 1\n")
    words = ["plan", "--gguf_path", str(files("llama")), "--kv_type", kv_type, *way]
    if way == ["--fit"]:
        words += ["--machine", str(machine)]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    assert main([*words[:3], "--kv_type", "f16+q8_0", *words[5:]]) == 0


def test_errors_that_need_the_tree(files, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("- match: {name: nothing}\n  replace: {operator: linear}\n  why: x\n")
    with pytest.raises(UserError, match=r"rules.yaml:1:3: matches no module of this model"):
        plan_command.run(str(files("llama")), str(path))
    with pytest.raises(UserError):
        plan_command.run(str(tmp_path / "none.gguf"))
    with pytest.raises(UserError, match="--device-map cuda: write DEVICE=DEVICE"):
        plan_command.run(str(files("llama")), device_map=["cuda"])


def test_shipped_operators_can_be_imported():
    """The catalog names classes by text; each has to exist."""
    from ktransformers.operators.registry import operators

    registry = operators()
    for name in registry.names():
        for backend in registry.backends(name):
            spec = registry.lookup(name, backend)
            assert spec.factory == "" or isinstance(spec.load(), type), name


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3"])
def test_moved_layers_compute_the_same(name, files, tmp_path):
    """Logits with a plain torch MLP, attention or linear agree with those of the shipped rules."""
    import torch

    from ktransformers.runtime.loading import load_model

    ids = torch.tensor([[5, 9, 2, 14, 7, 3, 3, 8]])

    def logits(rules=None, **options):
        model = load_model(
            files(name), activations="f32", cpu_infer=1, optimize_config_path=rules, **options
        )
        with torch.no_grad():
            return model(ids).logits, model.kt

    wanted, runtime = logits()
    assert runtime.plan.lowered
    from ktransformers.models.registry import family_of
    from ktransformers.optimize.shipped import shipped_rules

    shipped = shipped_rules(family_of(open_model(files(name)))).read_text()
    texts = {
        f"- match: {{name: '{pattern}'}}\n  replace: {{operator: default}}\n  why: x\n{more}"
        + shipped
        for pattern, more in (
            (r"^model\.layers\.1\.mlp$", "  recursive: false\n"),
            (r"^model\.layers\.1\.self_attn$", ""),
            (r"^model\.layers\.0\.self_attn\.o_proj$", ""),
            (r"^model\.layers\.1\.input_layernorm$", ""),
        )
    }
    for module in (r"model\.rotary_emb", r"model\.embed_tokens", "lm_head", "model"):
        rule = f"{{name: '^{module}$'}}\n  replace: {{operator: "
        before, _, after = shipped.partition(rule)
        texts.add(f"{before}{rule}default}}{after[after.index(chr(10)) :]}")
    assert len(texts) == 8
    path = tmp_path / "moved.yaml"
    for text in texts:
        path.write_text(text)
        moved, runtime = logits(str(path))
        changed = [row for row in runtime.plan.rows if row.operator == "default"]
        assert changed and all(row.rule for row in changed)
        told = any("not lowered" in note for note in runtime.notes)
        assert (runtime.decoder is None) == (told or not runtime.plan.lowered)
        error = (moved - wanted).pow(2).mean() / wanted.pow(2).mean()
        assert error < 1e-8, (text[:300], error)
