"""The planner: what goes where on described machines, and that its files say the same.

Sizes are checked against a file written by tests/support (whose bytes the gguf package counted) and
against what publishers list; predictions only for what must hold whatever the constants are.
"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import fit_check, fit_tables
from ktransformers.checkpoint.gguf import open_model
from ktransformers.cli.main import main
from ktransformers.errors import UserError
from ktransformers.models.known import KNOWN
from ktransformers.models.registry import family_for
from ktransformers.optimize.box import GB, Box, Gpu, read_box
from ktransformers.optimize.facts import facts_of_model
from ktransformers.optimize.fit import MARGIN, fit, neighbours
from ktransformers.optimize.fit_rules import fixed_by, int4_by, numbers, rules_text
from ktransformers.optimize.gpus import PUBLISHED as PUBLISHED_GPUS
from ktransformers.optimize.gpus import gpus_here, limits_of
from ktransformers.optimize.hot import hot_profile
from ktransformers.optimize.known import PUBLISHED, known_facts
from ktransformers.optimize.nvidia import Card
from ktransformers.optimize.plan import PlanContext, plan
from ktransformers.optimize.rules import load_rules, parse_rules
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]
MACHINES = sorted((ROOT / "docs/machines").glob("*.yaml"))
MODELS = ("DeepSeek-V3", "Qwen3-235B-A22B", "Qwen3-30B-A3B", "Mixtral-8x7B")
GPU = Gpu(24 * GB, 1008 * GB, 165e12, 25 * GB)
BOX = Box("box", 512 * GB, 100 * GB, 10e12, gpus=(GPU,))


@pytest.mark.parametrize(
    "name, gigabytes",
    # File sizes as publishers list them for these mixes, 10^9 bytes.
    [("DeepSeek-V3:Q4_K_M", 404), ("DeepSeek-V3:Q8_0", 713), ("Qwen3-235B-A22B:Q4_K_M", 142),
     ("Qwen3-30B-A3B:Q4_K_M", 18.6), ("Qwen3-30B-A3B:Q8_0", 32.5), ("Mixtral-8x7B:Q4_K_M", 28.4),
     ("Mixtral-8x7B:Q8_0", 49.6), ("Llama-3.1-8B:Q4_K_M", 4.92), ("Llama-3.3-70B:Q4_K_M", 42.5),
     ("Qwen3-32B:Q8_0", 34.8), ("Moonlight-16B-A3B:Q8_0", 17.0), ("Kimi-K2:Q8_0", 1090)],
)  # fmt: skip
def test_sizes_are_those_of_published_files(name, gigabytes):
    assert known_facts(name).nbytes / GB == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize("name", ["llama_tied", "qwen3moe", "deepseek_v3", "glm4moe"])
def test_facts_of_a_file_count_every_byte_once(name, tmp_path):
    model = open_model(write(miniature(name, types="Q8_0"), tmp_path / "m.gguf"))
    facts = facts_of_model(model)
    extra = model.tensors.get("rope_freqs.weight")
    assert facts.nbytes == model.bytes_total
    assert facts.active < facts.nbytes
    assert extra is None or extra.nbytes < 1000
    for group in facts.of("experts"):
        assert group.intensity == pytest.approx(facts.used / facts.experts)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda p: p.stem)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_fuller_than_full_and_the_cache_has_its_room(machine, model):
    box, facts = read_box(machine), known_facts(model)
    made = fit(facts, box, context=16384)
    assert sum(one.group.nbytes for one in made.placed) == facts.nbytes
    kv = facts.kv_bytes * facts.layers * 16384
    assert sum(made.reserve.values()) >= kv + MARGIN * len(box.gpus)
    for device in made.used:
        if device != "cpu":
            assert made.used[device] <= made.room(device)
    if not made.verdict:
        assert made.used["cpu"] <= made.room("cpu")
    # A group a token reads in part never takes the place of one that it reads whole.
    whole = {"attention", "shared", "dense", "head"}
    for device in made.used:
        kinds = {one.group.kind for one in made.placed if one.device == device}
        if device != "cpu" and "experts" in kinds:
            left = [one for one in made.placed if one.device == "cpu" and one.group.kind in whole]
            assert not left


@pytest.mark.parametrize("model", ["DeepSeek-V3:Q4_K_M", "Qwen3-235B-A22B"])
def test_an_fp8_cache_leaves_gpus_room_for_experts(model):
    facts = known_facts(model)
    fp8 = dataclasses.replace(facts, fp8_cache=True)
    latent = facts.expand_ops > 0
    assert fp8.card_kv_bytes == (512 + 2 * 64 + 1 if latent else 4 * (3 * 128 + 1))
    whole, half = (fit(one, BOX, context=65536) for one in (facts, fp8))
    layers = sum(p.group.kind == "attention" and p.device == "cuda:0" for p in half.placed)
    saved = layers * 65536 * (facts.kv_bytes - fp8.card_kv_bytes)
    assert saved > 0
    assert whole.reserve["cuda:0"] - half.reserve["cuda:0"] <= saved  # more layers may be there
    more = [sum(p.group.nbytes for p in one.placed if p.device != "cpu") for one in (whole, half)]
    assert more[1] > more[0] and half.speed > whole.speed


def test_steps_on_gpus_take_ram():
    """Two arrays of 8192 rows: the decoder's, and what is exchanged with the GPU."""
    facts = known_facts("DeepSeek-V3:Q4_K_M")
    none = fit(facts, dataclasses.replace(BOX, gpus=()), context=16384).reserve["cpu"]
    kv = facts.kv_bytes * facts.layers * 16384
    made = fit(facts, dataclasses.replace(BOX, gpus=(dataclasses.replace(GPU, vram=80 * GB),)),
               context=16384)  # fmt: skip
    more = made.reserve["cpu"] - (none - kv)
    assert 2 * 4 * 8192 * facts.hidden < more < 2.5 * 4 * 8192 * facts.hidden


def test_more_memory_or_bandwidth_is_never_slower():
    facts = known_facts("Qwen3-235B-A22B")
    speeds = [
        fit(facts, dataclasses.replace(BOX, gpus=(dataclasses.replace(GPU, vram=n * GB),))).speed
        for n in (8, 12, 16, 24, 48, 80, 192)
    ]
    assert speeds == sorted(speeds) and speeds[-1] > 2 * speeds[0]
    faster = dataclasses.replace(BOX, read=2 * BOX.read)
    assert fit(facts, faster).speed > 1.3 * fit(facts, BOX).speed
    assert fit(facts, BOX, context=131072).speed < fit(facts, BOX, context=1024).speed
    others = neighbours(facts, BOX, 4 * GB, context=8192)
    assert others["-"].speed < fit(facts, BOX).speed < others["+"].speed


def test_a_token_cannot_be_faster_than_its_bytes():
    for model in MODELS:
        facts = known_facts(model)
        made = fit(facts, dataclasses.replace(BOX, ram=2000 * GB, gpus=()), context=1)
        assert made.speed < BOX.read / facts.active
        assert made.prompt < BOX.int8 / (facts.active * 2)


@pytest.mark.parametrize("model", ["DeepSeek-V3", "Qwen3-30B-A3B", "Mixtral-8x7B", "GLM-4.5-Air"])
@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_the_rules_it_writes_place_what_it_says(model, gpus):
    """The file is planned on the model at full depth: each group is where the fit has it."""
    from ktransformers.optimize.tree import describe
    from ktransformers.runtime.loading import build_on_meta

    facts = known_facts(model)
    made = fit(facts, dataclasses.replace(BOX, gpus=(GPU,) * gpus))
    family = family_for(KNOWN[model]["model_type"])
    text = rules_text(made, family)
    config = dict(KNOWN[model])
    config.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 1e4})
    tree = describe(build_on_meta(family, config), family)
    planned = plan(tree, parse_rules(text, "f"), PlanContext(cuda_devices=gpus))
    assert not [note for note in planned.notes if "plain torch" in note], planned.notes
    names = {
        "attention": "self_attn", "experts": "mlp.experts", "shared": "mlp.shared_experts",
        "dense": "mlp", "head": "lm_head", "embedding": "model.embed_tokens",
    }  # fmt: skip
    partly = {one.group.layer for one in made.placed if one.experts}
    assert len(partly) <= gpus
    for one in made.placed:
        name = names[one.group.kind]
        if one.group.layer >= 0:
            name = f"model.layers.{one.group.layer}.{name}"
        row = planned.row(name)
        if one.group.kind == "experts" and one.group.layer in partly:
            assert row.device.startswith("cuda") and row.on_cpu > 0
            assert one.experts in (None, row.options.experts)
        else:
            assert row.device == one.device and row.on_cpu == 0, name


def test_patterns_of_numbers():
    import re

    for layers in ([0], [3, 4, 5], list(range(94)), [8, 9, 10, 11], [0, 20, 99, 100, 117]):
        pattern = re.compile(numbers(layers))
        assert [n for n in range(200) if pattern.fullmatch(str(n))] == layers


RULE = "- match: {{name: '{}'}}\n  replace: {{operator: {}, backend: {}}}\n  why: mine\n"


def test_partial_rules_win_and_the_rest_is_planned():
    mine = parse_rules(RULE.format(r"^model\.layers\.[0-9]\.mlp\.experts$", "moe.experts", "cuda"))
    facts = known_facts("Qwen3-30B-A3B:Q8_0")
    made = fit(facts, BOX, fixed=fixed_by(mine))
    on = {one.group.layer: one for one in made.placed if one.group.kind == "experts"}
    assert all(on[n].device == "cuda:0" and on[n].reason == "a rule says so" for n in range(10))
    assert all(one.device == "cuda:0" for one in made.placed if one.group.kind == "attention")
    assert on[47].device == "cpu"
    kept = parse_rules(RULE.format("self_attn", "attention.gqa", "cpu"))
    made = fit(facts, BOX, fixed=fixed_by(kept))
    assert all(one.device == "cpu" for one in made.placed if one.group.kind == "attention")
    too_much = parse_rules(RULE.format(r"mlp\.experts$", "moe.experts", "cuda"))
    with pytest.raises(UserError, match="GB more on cuda:0 than it holds"):
        fit(facts, BOX, fixed=fixed_by(too_much))
    by_class = parse_rules(RULE.format("x", "linear", "cpu").replace("name: 'x'", "class: Linear"))
    with pytest.raises(UserError, match="match by name"):
        fixed_by(by_class)


def test_partial_rules_in_int4_count_as_the_card_has_them(tmp_path):
    gguf = open_model(str(write(miniature("qwen3moe", types="Q6_K"), tmp_path / "m.gguf")))
    mine = RULE.format(r"self_attn\.[qkvo]_proj$|lm_head", "linear", "cuda")
    mine = mine.replace("backend: cuda", "backend: cuda, options: {quant: int4g64}")
    plain, int4 = (facts_of_model(gguf, None, one) for one in (None, int4_by(parse_rules(mine))))
    saved = 0
    for name, info in gguf.tensors.items():
        if re.search(r"attn_(q|k|v|output)\.weight", name) or name == "output.weight":
            rows = -(-info.shape[0] // 64) * 64
            saved += info.nbytes - rows * info.shape[1] * 17 // 32  # 4.25 bits
    assert saved > 0 and plain.nbytes - int4.nbytes == saved
    assert plain.experts_bytes == int4.experts_bytes
    mine = RULE.format(r"mlp\.experts$", "moe.experts", "cuda")
    mine = mine.replace("backend: cuda", "backend: cuda, options: {quant: int4g64}")
    int4 = facts_of_model(gguf, None, int4_by(parse_rules(mine)))
    saved = 0
    for name, info in gguf.tensors.items():
        if "_exps" in name:
            count, rows, cols = info.shape
            saved += info.nbytes - count * -(-rows // 64) * 64 * cols * 17 // 32
    assert saved > 0 and plain.nbytes - int4.nbytes == saved
    assert plain.experts_bytes - int4.experts_bytes == saved


def test_what_does_not_fit_is_said_with_figures(capsys):
    machine = str(ROOT / "docs/machines/gpu24.yaml")
    assert main(["plan", "--known", "DeepSeek-V3:Q8_0", "--machine", machine]) == 2
    out = capsys.readouterr()
    assert "GB short" in out.err and "routed experts" in out.out


def test_the_command_plans_a_file_for_another_machine(tmp_path, capsys):
    model = write(miniature("qwen3moe", types="Q4_0"), tmp_path / "m.gguf")
    machine, out = str(ROOT / "docs/machines/gpu24x2.yaml"), tmp_path / "rules.yaml"
    words = ["plan", "--gguf_path", str(model), "--machine", machine, "--write", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "1 GB more VRAM" in shown and "predicted:" in shown and "why" in shown
    assert load_rules(out).dialect == "own"
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words[:5], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"]


def test_suggestions_follow_the_caches_type(capsys):
    machine = ROOT / "docs" / "machines" / "gpu24x2.yaml"
    words = ["plan", "--suggest", "--machine", str(machine), "--context", "131072", "--kv_type"]
    shown = {}
    for kind in ("f16", "fp8"):
        assert main([*words, kind]) == 0
        shown[kind] = capsys.readouterr().out
    assert shown["f16"] != shown["fp8"]
    assert main([*words, "fp9"]) == 2
    assert "--kv_type fp9: no cache type" in capsys.readouterr().err


def test_a_server_checks_the_caches_type_before_it_imports_torch():
    code = (
        "import sys; from ktransformers.cli.main import main; "
        "status = main(['serve', '--gguf_path', 'no.gguf', '--kv_type', 'fp9']); "
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--kv_type fp9: no cache type" in done.stderr


def test_suggestions_fit_and_are_quants_that_exist(capsys):
    machine = ROOT / "docs/machines/gpu24.yaml"
    assert main(["plan", "--suggest", "--machine", str(machine)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) > 10
    for name, quant, size, speed, prompts in rows:
        assert name in KNOWN and quant.lower() in PUBLISHED
        assert not fit(known_facts(f"{name}:{quant}"), read_box(machine)).verdict
        assert float(size) < 220 and float(speed) > 0 and float(prompts) > 0


@pytest.mark.parametrize(
    "text, told",
    [
        ("ram_gb: 64\n", "m.yaml:1:1: the machine has no read_gb_per_s"),
        ("ram_gb: 64\nread_gb_per_s: -1\nint8_tops: 1\n", "m.yaml:2:16: read_gb_per_s must be"),
        ("ram_gb: 64\nread_gb_per_s: 9\nint8_tops: 1\nvram: 8\n", "m.yaml:4:1: unknown key 'vram'"),
        ("ram_gb: 64\nread_gb_per_s: 9\nint8_tops: 1\ngpus: [{vram_gb: 8}]\n", "has no gb_per_s"),
        ("[1]\n", "a machine must be a map"),
    ],
)
def test_a_wrong_machine_is_one_line(text, told, tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    assert main(["plan", "--known", "Mixtral-8x7B", "--machine", str(path)]) == 2
    err = capsys.readouterr().err.strip()
    assert told in err and "\n" not in err


@pytest.mark.parametrize(
    "words, told",
    [
        (["--known", "Mixtrl-8x7B"], "did you mean Mixtral-8x7B?"),
        (["--known", "Mixtral-8x7B:Q9"], "quant 'Q9' is not known"),
        (["--fit"], "give either --gguf_path FILE or --known"),
        ([], "--gguf_path is missing"),
    ],
)
def test_wrong_words_are_one_line(words, told, capsys):
    assert main(["plan", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_prediction_needs_no_torch():
    code = (
        "import sys\nfrom ktransformers.cli.main import main\n"
        f"main(['plan', '--known', 'Qwen3-30B-A3B', '--machine', {str(MACHINES[0])!r}])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# --- hot experts


def skewed_profile(path, facts, rng):
    """Counts of one heavy user's text: few experts of each layer are chosen much of the time."""
    layers = {}
    for group in facts.of("experts"):
        counts = (1e6 / np.arange(1, facts.experts + 1) ** rng.uniform(0.5, 1.5)).astype(int)
        layers[str(group.layer)] = {"counts": rng.permutation(counts).tolist()}
    profile = {"model": "m", "fewer": {}, "experts_per_token": facts.used, "layers": layers}
    path.write_text(json.dumps(profile))
    return layers


def test_the_hottest_experts_fill_what_is_left(tmp_path):
    facts, path = known_facts("Qwen3-235B-A22B"), tmp_path / "p.json"
    layers = skewed_profile(path, facts, np.random.default_rng(4))
    plain = fit(facts, BOX)
    hot = fit(facts, BOX, profile=hot_profile(str(path), facts))
    one = facts.of("experts")[0].nbytes / facts.experts
    for made in (plain, hot):
        assert made.room("cuda:0") - made.used["cuda:0"] < 2 * one  # full to the last expert
        assert sum(p.group.nbytes for p in made.placed) == facts.nbytes
        assert sum(p.group.active for p in made.placed) == pytest.approx(facts.active)
    assert hot.speed > 1.1 * plain.speed
    # No expert that stayed in RAM is chosen more often than one that is on the GPU.
    there = {p.group.layer: p for p in hot.placed if p.experts}
    shares = {n: sorted(np.array(e["counts"]) / sum(e["counts"]))[::-1] for n, e in layers.items()}
    coldest = min(shares[str(n)][p.experts - 1] for n, p in there.items())
    left = [shares[n][there[int(n)].experts if int(n) in there else 0] for n in layers]
    assert coldest >= max(left) and len(there) > 60
    for n, placed in there.items():
        covered = sum(shares[str(n)][: placed.experts])
        whole = next(g for g in facts.of("experts") if g.layer == n)
        assert placed.group.active == pytest.approx(whole.active * covered)
    text = rules_text(hot, family_for("qwen3_moe"))
    rules = parse_rules(text, "f").rules
    asked = {rule.options.experts for rule in rules if rule.operator == "moe.experts"}
    assert {p.experts for p in there.values()} <= asked
    assert all(r.options.profile == str(path) for r in rules if getattr(r.options, "experts", 0))


def test_profiles_of_another_model_are_refused(tmp_path, capsys):
    path = tmp_path / "p.json"
    skewed_profile(path, known_facts("Qwen3-30B-A3B"), np.random.default_rng(4))
    machine = str(ROOT / "docs/machines/gpu24.yaml")
    words = ["--machine", machine, "--experts-profile", str(path)]
    assert main(["plan", "--known", "Qwen3-30B-A3B:Q8_0", *words]) == 0
    assert "the hottest by the profile" in capsys.readouterr().out
    assert main(["plan", "--known", "Mixtral-8x7B", *words]) == 2
    assert "it is of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "backend, experts, told",
    [("cpu", 2, "the backend is cpu"), ("cuda", 99, "99 of 8 experts cannot be"),
     ("cuda", 0, "at least 1")],
)  # fmt: skip
def test_numbers_of_experts_that_cannot_be(backend, experts, told, tmp_path):
    from ktransformers.optimize.tree import describe
    from ktransformers.runtime.loading import build_on_meta
    from tests.support.families import families

    family = family_for("qwen3_moe")
    tree = describe(build_on_meta(family, dict(families()["qwen3moe"].config)), family)
    text = (
        "- match: {name: 'mlp.experts$'}\n  replace: {operator: moe.experts, backend: "
        f"{backend}, options: {{experts: {experts}}}}}\n  why: x\n"
    )
    with pytest.raises(UserError, match=f"^f:.*{told}"):
        plan(tree, parse_rules(text, "f"), PlanContext(cuda_devices=1))
    if told.startswith("99"):
        fine = parse_rules(text.replace("99", "6"), "f")
        row = plan(tree, fine, PlanContext(cuda_devices=1)).row("model.layers.1.mlp.experts")
        assert row.nbytes == 3 * row.on_cpu
        mapped = plan(tree, fine, PlanContext(device_map={"cuda": "cpu"}))
        assert mapped.row("model.layers.1.mlp.experts").on_cpu == 0


# --- machines as drivers and files tell of them


def test_gpus_are_known_by_the_names_drivers_give(monkeypatch):
    names = ("NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3", "Some New Card")
    found = [Card(name, 80 << 30, 20 << 30, "580") for name in names]
    first, second, third = gpus_here(found)
    assert first.vram == 20 << 30 and first.read == 1008 * GB and first.ops == 165e12
    assert second.read == 3350 * GB
    assert third.read == min(read for read, _ in PUBLISHED_GPUS.values()) * GB
    assert limits_of("NVIDIA A100-SXM4-80GB")[0] == 2039
    monkeypatch.setenv("KT_VRAM_LIMIT", "8GiB")
    assert gpus_here(found)[0].vram == 8 << 30


def test_this_machine_is_measured_once(monkeypatch):
    from ktransformers.optimize import box

    first, again = box.this_box(1), box.this_box(1)
    assert (first.read, first.int8) == (again.read, again.int8)
    assert first.read > 1e9 and first.int8 > 1e9 and 1e9 < first.ram < 1e14
    monkeypatch.setattr("ktransformers.optimize.gpus.has_gpu_operators", lambda: True)
    monkeypatch.setattr("ktransformers.optimize.gpus.gpus_here", lambda: (GPU,))
    assert box.here().gpus == (GPU,)


def test_without_rules_the_planner_places(tmp_path, capsys, monkeypatch):
    """On a machine with a GPU this build could use: its rules, on the GPU; else the family's."""
    from ktransformers.optimize import fit_here

    model = write(miniature("qwen3moe", types="Q4_0"), tmp_path / "m.gguf")
    assert main(["plan", "--gguf_path", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "qwen3moe.yaml" in shown and "predicted: " in shown and "1 GB more RAM" in shown
    assert main(["plan", "--gguf_path", str(model), "--no-fit"]) == 0
    assert "predicted" not in capsys.readouterr().out
    assert main(["plan", "--gguf_path", str(model), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fit"]["tokens_per_second"] > 0 and document["rows"]
    opened = open_model(model)
    family = family_for("qwen3_moe")
    monkeypatch.setattr(fit_here, "here", lambda: BOX)
    rules, told = fit_here.rules_for_loading(opened, family, 4096)
    assert told == [] and rules.path == "fit"
    assert any(rule.device == "cuda:0" for rule in rules.rules)
    small = dataclasses.replace(BOX, ram=1e6, gpus=())
    monkeypatch.setattr(fit_here, "here", lambda: small)
    rules, told = fit_here.rules_for_loading(opened, family, 4096)
    assert "does not fit" in told[0] and rules.path.endswith("qwen3moe.yaml")


def test_a_folder_is_planned_as_what_it_is_loaded_as(tmp_path):
    model = open_model(write(miniature("llama", types="BF16", wide=True), tmp_path / "m.gguf"))
    as_is, smaller = facts_of_model(model), facts_of_model(model, "q8_0")
    matrices = [i for i in model.tensors.values() if len(i.shape) > 1]
    others = sum(i.nbytes for i in model.tensors.values() if len(i.shape) == 1)
    assert as_is.nbytes == model.bytes_total
    assert smaller.nbytes == others + sum(i.nbytes for i in matrices) * 17 // 32


# --- the constants and the page that shows them


def test_facts_kept_in_a_row_are_those_of_the_file(tmp_path):
    model = open_model(write(miniature("deepseek_v3", types="Q8_0"), tmp_path / "m.gguf"))
    facts = facts_of_model(model)
    again = fit_check.facts_from_json("m", fit_check.facts_to_json(facts))
    assert again.nbytes == facts.nbytes and again.active == pytest.approx(facts.active, rel=1e-6)
    assert fit(again, BOX).speed == pytest.approx(fit(facts, BOX).speed, rel=1e-6)


def test_positive_least_squares_is_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = rng.random((12, 3)) + 0.05
        x = np.array(fit_check.positive_least_squares(matrix))
        best = ((matrix @ x - 1) ** 2).sum()
        assert (x >= 0).all()
        for _ in range(200):
            other = np.abs(x + rng.normal(0, 0.1, 3))
            assert ((matrix @ other - 1) ** 2).sum() >= best - 1e-9


def test_the_page_shows_what_the_planner_says():
    page = fit_tables.PAGE.read_text()
    assert fit_tables.with_tables(page) == page, "run python -m bench.fit_tables --write"
