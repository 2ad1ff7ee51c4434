"""Folders of integer codes (GPTQ, AWQ, compressed-tensors): the very codes, and what they say.

tests/support/int4_folders.py writes them. The values are held against compressed-tensors' own
decompression, its reading of AWQ, the formats' descriptions, and transformers in fp32.
"""

import json
import re
import shutil

import gguf
import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from safetensors.torch import load_file, save_file

from ktransformers import AutoModelForCausalLM, _core
from ktransformers.checkpoint.gguf import open_model
from ktransformers.checkpoint.naming import LAYER_TENSORS
from ktransformers.cli.main import main
from ktransformers.errors import UserError
from ktransformers.models.registry import family_of
from ktransformers.optimize.shipped import shipped_rules
from tests.support.compare import compare
from tests.support.families import families
from tests.support.int4_folders import Grid, codes_of, stored, write_folder
from tests.support.miniatures import miniature, write
from tests.support.ours import logits
from tests.support.reference import Reference

CT = Grid("compressed-tensors", group=32, scales=torch.bfloat16)
GRIDS = {
    "kimi": CT,  # as Kimi-K2-Thinking is stored
    "ct_g128_zeros": CT.but(group=128, symmetric=False, scales=torch.float16),
    "ct_channel": CT.but(group=0),
    "ct_ordered": CT.but(group=64, is_ordered=True),
    "ct_int8": CT.but(bits=8, group=128),
    "gptq": Grid("gptq", group=128),
    "gptq_zeros": Grid("gptq", group=32, symmetric=False),
    "gptq_v2": Grid("gptq_v2", group=64, symmetric=False),
    "gptq_channel": Grid("gptq_v2", group=0),
    "gptq_ordered": Grid("gptq", group=64, is_ordered=True),
    "gptq_int8": Grid("gptq", bits=8, group=64),
    "gptq_int8_zeros": Grid("gptq_v2", bits=8, group=64, symmetric=False),
    "gptq_16": Grid("gptq", group=16),
    "awq": Grid("awq", group=128, symmetric=False),
    "awq_g32": Grid("awq", group=32, symmetric=False),
}
LOST = {"ct_ordered", "gptq_ordered", "gptq_int8_zeros", "gptq_16"}  # no blocks have such codes
IDS = [5, 77, 141, 3, 250, 12, 88, 199, 42, 7]


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """Thousands of small operations, which wait for a second thread longer than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{family: folder of bf16 weights}."""
    from ktransformers.checkpoint.tokenizer import build_tokenizer

    made = {}
    for name in ("llama_tied", "qwen3moe", "deepseek_v3_whole"):
        path = tmp_path_factory.mktemp("sources") / name
        source = write(miniature(name, types="BF16", wide=True), path.with_suffix(".gguf"))
        reference = Reference.load(source, families(wide=True)[name])
        reference.model.to(torch.bfloat16).save_pretrained(path)
        build_tokenizer(open_model(source)).save_pretrained(path)
        made[name] = path
    return made


def expected_type(name: str) -> str:
    grid = GRIDS[name]
    if name in LOST or grid.bits == 8:
        return "q8_0"
    return "q4_0" if grid.symmetric else "q4_1"


def codes_in(blocks: np.ndarray, kind: str) -> np.ndarray:
    """Codes of q4_0, q4_1 or q8_0 as GGUF describes the blocks, [rows, columns]."""
    size = {"q4_0": 18, "q4_1": 20, "q8_0": 34}[kind]
    rows = blocks.reshape(-1, size)
    if kind == "q8_0":
        return rows[:, 2:].view(np.int8).astype(int) + 128
    nibbles = rows[:, size - 16 :]
    return np.concatenate([nibbles & 15, nibbles >> 4], axis=1)


def gguf_name(name: str) -> str:
    _, _, layer, rest = name.split(".", 3)
    if match := re.match(r"mlp\.experts\.\d+\.(gate|up|down)_proj", rest):
        return f"blk.{layer}.ffn_{match[1]}_exps.weight"
    return f"blk.{layer}.{LAYER_TENSORS[rest]}"


def expert_of(name: str) -> int:
    match = re.search(r"experts\.(\d+)\.", name)
    return int(match[1]) if match else 0


@pytest.mark.parametrize("name", GRIDS)
def test_blocks_have_the_very_codes(sources, name, tmp_path):
    grid, folder = GRIDS[name], tmp_path / "folder"
    found = write_folder(sources["qwen3moe"], folder, grid, r"layers\.1\..*_proj\.weight$")
    model = open_model(folder)
    kind = expected_type(name)
    seen = {}
    for key, codes in found.items():
        tensor = gguf_name(key)
        n, k = codes.u.shape
        if tensor not in seen:
            assert model.tensor(tensor).type == kind
            assert model.stored_type(tensor) == f"int{grid.bits}"
            floats = model.dequantize(tensor).reshape(-1, n, k)
            seen[tensor] = floats, model.data(tensor).reshape(len(floats), n, -1)
        values, blocks = (part[expert_of(key)] for part in seen[tensor])
        assert np.array_equal(values, codes.values.numpy()), key
        read = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
        error = np.sqrt(np.mean((read - values) ** 2) / np.mean(values**2))
        if name in LOST:
            assert 0 < error < 0.012
            continue
        assert np.array_equal(codes_in(blocks, kind).reshape(n, k), codes.u.numpy()), key
        # Scales are f16 or hold f16's digits; the minimum of q4_1 is rounded.
        assert error == 0 if grid.symmetric else error < 1e-3
    assert set(model.coded) == set(seen) and model.type_of("blk.0.attn_q.weight") == "bf16"
    assert model.tensor("blk.0.ffn_gate_inp.weight").type == "bf16"
    assert bool(model.remarks()) == (name in LOST)
    assert all(f"{len(seen)} tensors are rounded again" in line for line in model.remarks())


@pytest.mark.parametrize(
    "family, name",
    [("llama_tied", "kimi"), ("llama_tied", "gptq_zeros"), ("llama_tied", "awq"),
     ("llama_tied", "gptq_ordered"), ("qwen3moe", "gptq"), ("deepseek_v3_whole", "kimi")],
)  # fmt: skip
def test_a_folder_says_what_its_codes_say(sources, family, name, tmp_path):
    folder = tmp_path / "folder"
    which = r"experts\.\d+\..*_proj\.weight$" if family == "deepseek_v3_whole" else r"_proj.weight$"
    write_folder(sources[family], folder, GRIDS[name], which)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "values", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS])).logits[0].numpy()
    rules = tmp_path / "rules.yaml"
    rules.write_text(with_quant(folder, "file"))
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), activations="f32", optimize_config_path=str(rules)
    )
    result = compare(wanted, logits(model, IDS))
    # Exact; with the minimum rounded to f16; rounded to q8_0.
    bound = 5e-3 if name in LOST else 1e-6 if GRIDS[name].symmetric else 1e-4
    assert result.kl_max < bound and result.top1 == 1
    assert any("rounded again" in note for note in model.kt.notes) == (name in LOST)


def with_quant(folder, quant: str) -> str:
    text = shipped_rules(family_of(open_model(folder))).read_text()
    for operator in ("linear", "embedding", "moe.experts"):
        plain = f"operator: {operator}, backend: cpu}}"
        text = text.replace(plain, f"{plain[:-1]}, options: {{quant: {quant}}}}}")
    assert f"quant: {quant}" in text
    return text


@pytest.mark.parametrize("name", ["kimi", "ct_g128_zeros"])
def test_transformers_decompresses_to_the_same_values(sources, name, tmp_path):
    folder = tmp_path / "folder"
    found = write_folder(sources["llama_tied"], folder, GRIDS[name])
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head"]  # it does run the patterns
    (folder / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32,
        quantization_config=transformers.CompressedTensorsConfig(run_compressed=False),
    )  # fmt: skip
    state, model = theirs.state_dict(), open_model(folder)
    for key in found:
        rows = model.dequantize(gguf_name(key))
        if re.search(r"self_attn\.[qk]_proj", key):  # in a GGUF they are in rotary pairs
            heads = 4 if "q_proj" in key else 2
            rows = rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
        # Theirs multiplies in the scale's type.
        assert np.allclose(state[key].float().numpy(), rows, rtol=2**-8, atol=0), key


def test_compressed_tensors_reads_the_awq_folder_alike(sources, tmp_path):
    folder = tmp_path / "folder"
    write_folder(sources["qwen3moe"], folder, GRIDS["awq"])
    packed = load_file(folder / "model.safetensors")
    converter = AutoAWQConverter(group_size=128, ignore=[], targets=["re:.*_proj"])
    weights = converter.process({k: v for k, v in packed.items() if "self_attn" in k})
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    model = open_model(folder)
    key = "model.layers.1.self_attn.v_proj"
    shape = tuple(weights[f"{key}.weight_shape"].tolist())
    u = unpack_from_int32(weights[f"{key}.weight_packed"], 4, shape)
    zero = weights[f"{key}.weight_zero_point"]
    zero = unpack_from_int32(zero, 4, (shape[0], shape[1] // 128), packed_dim=0)
    wide = [x.repeat_interleave(128, 1) for x in (zero.int(), weights[f"{key}.weight_scale"])]
    values = (u.int() - wide[0]).float() * wide[1].float()
    assert np.array_equal(model.dequantize("blk.1.attn_v.weight"), values.numpy())


def test_words_are_read_as_the_formats_describe_them():
    """Eight columns of one row and eight rows of one column, by hand."""
    word = np.array([0x76543210], np.uint32)
    one = np.ones((1, 8), np.float16)

    def read(layout, n, k, groups, scales, **more) -> list[float]:
        matrix = _core.PackedMatrix(
            layout=layout, bits=4, n=n, k=k, groups=groups, codes=word.repeat(max(n, k) // 8 or 1),
            scales=scales, scale_type="f16", **more,
        )  # fmt: skip
        return matrix.to_floats(0, n).reshape(-1).tolist()

    zeros = np.zeros(1, np.uint32)
    assert read("rows", 1, 8, 1, one[:, :1]) == [-8, -7, -6, -5, -4, -3, -2, -1]
    assert read("gptq", 1, 8, 1, one[:, :1], zeros=zeros) == [0, 1, 2, 3, 4, 5, 6, 7]
    less = read("gptq", 1, 8, 1, one[:, :1], zeros=zeros + 6, zero_offset=1)
    assert less == [-7, -6, -5, -4, -3, -2, -1, 0]
    # Rows 0 2 4 6 1 3 5 7 lie in a word of AWQ from its lowest nibble on.
    assert read("awq", 8, 1, 1, one, zeros=zeros) == [0, 4, 1, 5, 2, 6, 3, 7]
    order = np.array([7, 6, 5, 4, 3, 2, 1, 0], np.int32)
    assert read("awq", 8, 1, 1, one, zeros=zeros, rows=order) == [7, 3, 6, 2, 5, 1, 4, 0]
    by_column = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int32)
    scales = np.array([1, 10], np.float16)
    mixed = read("gptq", 1, 8, 2, scales, zeros=np.zeros(2, np.uint32), group_of=by_column)
    assert mixed == [0, 10, 2, 30, 4, 50, 6, 70]


@pytest.mark.parametrize("quant, kind", [("q4_k", "q4_k"), ("q8_0", "q8_0"), ("auto", "q4_0")])
def test_a_rule_says_what_codes_become(sources, quant, kind, tmp_path):
    folder, rules = tmp_path / "folder", tmp_path / "rules.yaml"
    write_folder(sources["qwen3moe"], folder, GRIDS["kimi"])
    rules.write_text(with_quant(folder, quant))
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), activations="f32", optimize_config_path=str(rules)
    )
    folder_model = model.kt.gguf
    assert folder_model.tensor("blk.1.ffn_up_exps.weight").type == kind
    row = model.kt.plan.row("model.layers.1.mlp.experts")
    assert row.nbytes == 3 * 8 * 256 * 256 * {"q4_k": 4.5, "q8_0": 8.5, "q4_0": 4.5}[kind] / 8
    head = folder_model.tensor("output.weight").type
    assert head == ("q8_0" if quant == "auto" else kind)  # floats are rounded as ever
    values = folder_model.dequantize("blk.1.ffn_up_exps.weight")
    data = folder_model.data("blk.1.ffn_up_exps.weight")
    read = _core.dequantize(data, kind).reshape(values.shape)
    error = np.sqrt(np.mean((read - values) ** 2) / np.mean(values**2))
    assert (error == 0) == (kind != "q4_k") and error < 0.14


@pytest.fixture
def emulated_card(monkeypatch):
    from tests.python.test_card import LIBRARY, nvidia

    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is not built (cmake -DKT_BUILD_TESTS=ON)")
    monkeypatch.setenv("KT_CUDA_LIBRARY", str(LIBRARY))
    nvidia.module_state.cache_clear()
    yield
    nvidia.module_state.cache_clear()


@pytest.mark.parametrize("name", ["kimi", "awq"])
def test_a_card_takes_the_same_codes(sources, name, tmp_path, emulated_card):
    from tests.python.test_card import rules_for

    folder = tmp_path / "folder"
    write_folder(sources["qwen3moe"], folder, GRIDS[name])
    int4 = "backend: cuda, device: 'cuda:0', options: {quant: int4}"
    rules = rules_for("qwen3moe", r"(?!model\b|embedding|moe\.experts)(\S+)", tmp_path, linear=int4)
    text = re.sub(r"(name: '\^lm_head\$'\}\s+replace: \{operator: linear, ).*?\}\}", r"\1backend: "
                  "cpu}", open(rules).read())  # fmt: skip
    open(rules, "w").write(text)
    card = AutoModelForCausalLM.from_pretrained(
        str(folder), activations="f32", optimize_config_path=rules, cpu_infer=2
    )
    assert any("their codes are the file's" in note for note in card.kt.notes)
    cpu = AutoModelForCausalLM.from_pretrained(str(folder), activations="f32", gpu="off")
    assert compare(logits(cpu, IDS), logits(card, IDS)).kl_max < 1e-3


def test_the_command_keeps_codes_unless_told_otherwise(sources, tmp_path, capsys):
    folder, out = tmp_path / "folder", tmp_path / "out.gguf"
    found = write_folder(sources["qwen3moe"], folder, GRIDS["gptq"])
    assert main(["quantize", str(folder), str(out), "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "KEEP: " in told.out and "q4_0" in told.out and "rounded" not in told.err
    assert main(["quantize", str(folder), str(out), "--tensor", "attn_q.weight=q6_k"]) == 0
    assert "1 kept" not in capsys.readouterr().out
    reader = gguf.GGUFReader(out)
    assert reader.get_field("general.file_type").contents() == 2
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "Q6_K"
    assert tensors["output.weight"].tensor_type.name == "Q8_0"
    for key, codes in found.items():
        tensor = tensors[gguf_name(key)]
        if tensor.tensor_type.name != "Q6_K":
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            values = values.reshape(-1, *codes.u.shape)[expert_of(key)]
            assert np.array_equal(values, codes.values.numpy()), key
    asked = tmp_path / "asked.gguf"
    assert main(["quantize", str(folder), str(asked), "Q4_K_M"]) == 0
    assert "14 int4 tensors are quantised already" in capsys.readouterr().err
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(asked).tensors}
    assert kinds["blk.0.ffn_up_exps.weight"] == "Q4_K"
    assert main(["quantize", str(sources["qwen3moe"]), str(tmp_path / "x.gguf"), "keep"]) == 2
    assert "has no int4 or int8 codes" in capsys.readouterr().err
    assert main(["inspect", str(folder)]) == 0
    assert "q4_0" in capsys.readouterr().out
    assert main(["plan", "--gguf_path", str(folder)]) == 0


def change(folder, edit, **config) -> None:
    """Edits the tensors of a folder in place, and its quantization_config."""
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(values))


def test_scales_out_of_reach_go_to_the_next_type_and_are_counted(sources, tmp_path):
    folder = tmp_path / "folder"
    write_folder(sources["qwen3moe"], folder, GRIDS["kimi"])

    def edit(state):
        state["model.layers.0.self_attn.q_proj.weight_scale"] *= 1e-7
        state["model.layers.1.self_attn.q_proj.weight_scale"] *= 1e-7
        state["model.layers.0.self_attn.k_proj.weight_scale"][3, 1] = 1e6

    change(folder, edit)
    model = open_model(folder)
    for name in ("blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.0.attn_k.weight"):
        values = model.dequantize(name)
        assert model.type_of(name) == "q4_0"
        data = model.data(name)
        read = _core.dequantize(data, model.type_of(name)).reshape(values.shape)
        assert model.type_of(name) == "bf16"
        assert np.allclose(read, values, rtol=2**-8, atol=0)
    assert model.remarks() == [
        "3 tensors are bf16 instead of q4_0, which cannot have their scales or zero points"
    ]


def test_zero_points_that_sym_denies_are_kept_as_minima(sources, tmp_path):
    folder = tmp_path / "folder"
    found = write_folder(sources["qwen3moe"], folder, GRIDS["gptq"])
    key = "model.layers.0.self_attn.v_proj"

    def edit(state):
        state[f"{key}.qzeros"][1] = 0x55555555  # zero points of 6

    change(folder, edit)
    model = open_model(folder)
    codes = found[f"{key}.weight"]
    codes.zero[:, 1] = 6
    data = model.data("blk.0.attn_v.weight")
    assert model.type_of("blk.0.attn_v.weight") == "q4_1"
    read = _core.dequantize(data, "q4_1").reshape(codes.u.shape)
    assert np.allclose(read, codes.values.numpy(), rtol=0, atol=2e-4)
    assert "1 tensors are q4_1 instead of q4_0" in model.remarks()[0]


def test_modules_may_differ_in_bits(sources, tmp_path):
    """`dynamic` of GPTQModel, several groups of compressed-tensors: the shapes say which."""
    for number, grid in enumerate((GRIDS["gptq"], GRIDS["kimi"])):
        folder = tmp_path / f"folder{number}"
        write_folder(sources["qwen3moe"], folder, grid)
        key, wide = "model.layers.1.self_attn.o_proj", grid.but(bits=8, group=64)
        weight = load_file(sources["qwen3moe"] / "model.safetensors")[f"{key}.weight"]
        codes = codes_of(weight, wide, 0)

        parts = stored(key, codes, wide)

        def edit(state, parts=parts):
            for name in [name for name in state if name.startswith("model.layers.1.self_attn.o")]:
                del state[name]
            state |= parts

        more = {"dynamic": {"+:(a+)+$": {"bits": 8, "group_size": 64}}}
        if number:
            config = json.loads((folder / "config.json").read_text())["quantization_config"]
            groups = config["config_groups"]
            other = json.loads(json.dumps(groups["group_0"]))
            other["weights"] |= {"num_bits": 8, "group_size": 64}
            more = {"config_groups": groups | {"group_1": other}}
        change(folder, edit, **more)
        model = open_model(folder)
        assert model.tensor("blk.1.attn_output.weight").type == "q8_0"
        assert model.tensor("blk.0.attn_output.weight").type == ("q4_0" if number else "q4_1")
        values = model.dequantize("blk.1.attn_output.weight")
        assert np.array_equal(values, codes.values.numpy())


def test_a_bias_of_zeros_that_no_module_has_is_left_out(sources, tmp_path):
    folder = tmp_path / "folder"
    write_folder(sources["llama_tied"], folder, GRIDS["gptq"])
    bias = torch.zeros(512, dtype=torch.float16)
    key = "model.layers.0.mlp.up_proj.bias"
    change(folder, lambda state: state.update({key: bias, key.replace("mlp.up", "self_attn.q"):
                                               bias[:256].clone()}))  # fmt: skip
    assert not any("bias" in name for name in open_model(folder).tensors)
    change(folder, lambda state: state[key].fill_(1))
    with pytest.raises(UserError, match="up_proj.bias: nothing is known of it"):
        open_model(folder)


Q = "model.layers.0.self_attn.q_proj"


def drop(name):
    return lambda state: state.pop(f"{Q}.{name}")


def put(name, make):
    return lambda state: state.update({f"{Q}.{name}": make(state[f"{Q}.{name}"])})


@pytest.mark.parametrize(
    "name, edit, config, told",
    [
        ("gptq", None, {"bits": 3}, "quantization_config.bits: 3 cannot be read; codes of 4 and 8"),
        ("gptq", None, {"bits": "4"}, "bits: '4' cannot be read"),
        ("gptq", None, {"group_size": 0}, "group_size: 0 is no number of columns"),
        ("gptq", None, {"group_size": 96}, "256 columns, which groups of 96 do not divide"),
        ("gptq", None, {"group_size": 64}, "has 2 groups; 256 columns in groups of 64 have 4"),
        ("gptq", None, {"checkpoint_format": "marlin"}, "'marlin' cannot be read; gptq and"),
        ("gptq", None, {"is_marlin_format": True}, "is_marlin_format: true cannot be read"),
        ("gptq", None, {"pack_dtype": "int8"}, "pack_dtype: 'int8' cannot be read"),
        ("gptq", None, {"quant_method": "quip"}, "'quip' cannot be read; unquantised folders"),
        ("gptq", None, {"desc_act": "yes"}, "desc_act: 'yes' is neither true nor false"),
        ("gptq", drop("scales"), {}, "has no scales beside it"),
        ("gptq", drop("qzeros"), {}, "has no qzeros beside it"),
        ("gptq", drop("qweight"), {}, "has no qweight beside it"),
        ("gptq_ordered", drop("g_idx"), {}, "has no g_idx beside it, and config.json says"),
        ("gptq", put("scales", lambda t: t[:, :64].contiguous()), {}, "a matrix of 64 x 256 in 4"),
        ("gptq", put("qzeros", lambda t: t[:, :5].contiguous()), {}, "q_proj.qzeros: has shape"),
        ("gptq", put("qweight", lambda t: t[:9].contiguous()), {}, "belongs to a matrix of"),
        ("gptq", put("qweight", lambda t: t.to(torch.int64)), {}, "has type i64, not i32"),
        ("gptq", put("scales", lambda t: t[0]), {}, "a matrix is needed"),
        ("gptq", lambda s: s.update({f"{Q}.weight": torch.ones(4)}), {}, "beside a plain weight"),
        ("awq", None, {"bits": 8}, "bits: 8 cannot be read; codes of 4 bits can"),
        ("awq", None, {"version": "gemv"}, "version: 'gemv' cannot be read; gemm can"),
        ("awq", put("qweight", lambda t: t[:, :4].contiguous()), {}, "belongs to a matrix of"),
        ("kimi", None, {"format": "nvfp4-pack-quantized"}, "pack-quantized can"),
        ("kimi", None, {"config_groups": {}}, "config_groups: names no group of modules"),
        ("kimi", None, {"transform_config": {"R1": 1}}, "transform_config: {'R1': 1} cannot"),
        ("kimi", drop("weight_shape"), {}, "has no weight_shape beside it"),
        ("ct_g128_zeros", drop("weight_zero_point"), {}, "has no weight_zero_point beside it"),
        ("kimi", put("weight_scale", lambda t: t[:, :3].contiguous()), {}, "a matrix of 256 x 96"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_before_anything_is_read(
    sources, name, edit, config, told, tmp_path
):
    folder = tmp_path / "folder"
    write_folder(sources["qwen3moe"], folder, GRIDS[name], r"0\.self_attn\.q_proj\.weight$")
    change(folder, edit or (lambda state: None), **config)
    with pytest.raises(UserError) as error:
        open_model(folder)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "name, edit, told",
    [
        ("gptq", put("scales", lambda t: t.index_fill(1, torch.tensor(7), float("nan"))),
         f"model.safetensors: {Q}.scales: the scale of row 7, group 0 is nan"),
        ("kimi", put("weight_scale", lambda t: t.index_fill(0, torch.tensor(9), float("inf"))),
         f"{Q}.weight_scale: the scale of row 9, group 0 is inf"),
        ("gptq_ordered", put("g_idx", lambda t: t.index_fill(0, torch.tensor(11), 4)),
         f"{Q}.g_idx: puts column 11 into group 4 of 4"),
        ("gptq", put("g_idx", lambda t: t.index_fill(0, torch.tensor(3), -1)),
         f"{Q}.g_idx: puts column 3 into group -1 of 2"),
        ("kimi", put("weight_shape", lambda t: t * 2),
         f"{Q}.weight_shape: says [512, 512], but the codes are of [256, 256]"),
    ],
)  # fmt: skip
def test_bad_values_are_one_line_with_file_and_tensor(sources, name, edit, told, tmp_path):
    folder = tmp_path / "folder"
    write_folder(sources["qwen3moe"], folder, GRIDS[name], r"0\.self_attn\.q_proj\.weight$")
    change(folder, edit)
    with pytest.raises(UserError) as error:
        model = open_model(folder)
        assert "q_proj" not in str(model.tensors["blk.0.attn_q.weight"])
        model.data("blk.0.attn_q.weight")
    assert told in str(error.value) and "\n" not in str(error.value)
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(folder), str(out)]) == 2 and not out.exists()


def test_sizes_are_checked_in_the_core_too():
    def matrix(**changes):
        usual = {
            "layout": "rows", "bits": 4, "n": 2, "k": 64, "groups": 2, "scale_type": "f16",
            "codes": np.zeros(16, np.uint32), "scales": np.zeros(4, np.float16),
        }  # fmt: skip
        return _core.PackedMatrix(**usual | changes)

    assert matrix().can_keep("q4_0") and not matrix().can_keep("q4_k")
    for changes, told in (
        ({"bits": 5}, "codes of 5 bits"), ({"layout": "awq", "bits": 8}, "codes of 8 bits"),
        ({"n": 1 << 40}, "packed matrix of"), ({"k": 0}, "packed matrix of"),
        ({"n": (1 << 31) - 1, "k": (1 << 31) - 1, "groups": 1}, "codes: 64 bytes"),
        ({"groups": 3}, "3 groups do not divide"), ({"groups": 128}, "128 groups of 64 columns"),
        ({"codes": np.zeros(15, np.uint32)}, "codes: 60 bytes"),
        ({"scales": np.zeros(3, np.float16)}, "scales: 6 bytes"),
        ({"zeros": np.zeros(1, np.uint32)}, "zero points: 4 bytes"),
        ({"scale_type": "f64"}, "'f64' is not known"), ({"layout": "x"}, "layout 'x'"),
        ({"group_of": np.zeros(63, np.int32)}, "63 groups for 64 columns"),
        ({"group_of": np.full(64, 2, np.int32)}, "column 0 is in group 2 of 2"),
        ({"rows": np.array([0, 2], np.int32)}, "row 2 of 2"),
        ({"rows": np.zeros(3, np.int32)}, "3 places for 2 rows"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(told)):
            matrix(**changes)
    with pytest.raises(ValueError, match="rows 1 .. 3 of 2"):
        matrix().to_floats(1, 2)
    with pytest.raises(ValueError, match="cannot have codes of 4 bits"):
        matrix(groups=4, scales=np.zeros(8, np.float16)).convert("q4_0", 0, 2, True)


def test_threads_and_pieces_make_no_difference(sources, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    for name in ("kimi", "awq", "gptq_ordered"):
        write_folder(sources["qwen3moe"], folder, GRIDS[name])
        model = open_model(folder)
        tensor = "blk.1.ffn_down_exps.weight"
        whole = model.data(tensor)
        model.threads = 7
        monkeypatch.setattr("ktransformers.checkpoint.pieces.ROWS_AT_ONCE", 1)
        assert np.array_equal(model.data(tensor), whole)
        monkeypatch.undo()
        shutil.rmtree(folder)
