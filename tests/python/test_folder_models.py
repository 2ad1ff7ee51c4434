"""Hugging Face folders: converted to GGUF and loaded as they are, against what wrote them.

The folders are written by transformers' save_pretrained and tokenizers; the GGUF files are read
back by the gguf package and mapped by tests/support/reference.py, which shares no code with ours.
"""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ktransformers import _core
from ktransformers.checkpoint.folder_model import FolderModel
from ktransformers.checkpoint.gguf import open_model
from ktransformers.checkpoint.presets import choose_types, preset
from ktransformers.checkpoint.quantize import quantize_model
from ktransformers.cli.main import main
from ktransformers.errors import UserError
from ktransformers.models.registry import family_of
from ktransformers.optimize.shipped import shipped_rules
from tests.support.compare import compare
from tests.support.families import families
from tests.support.miniatures import miniature, write
from tests.support.ours import load, logits
from tests.support.reference import Reference, map_weights, read_weights

NAMES = ("llama_tied", "mixtral", "qwen2moe", "qwen3moe", "deepseek_v3_whole", "qwen2_yarn")
IDS = [5, 77, 141, 3, 250, 12, 88, 199, 42, 7]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: (folder of bf16 weights, the GGUF its weights came from)}, written once."""
    from ktransformers.checkpoint.tokenizer import build_tokenizer

    made = {}
    for name in NAMES:
        path = tmp_path_factory.mktemp("folders") / name
        source = write(miniature(name, types="BF16", wide=True), path.with_suffix(".gguf"))
        reference = Reference.load(source, families(wide=True)[name])
        reference.model.to(torch.bfloat16).save_pretrained(path)
        build_tokenizer(open_model(source)).save_pretrained(path)
        made[name] = (path, source)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_metadata_are_those_of_a_converter(folders, name):
    folder, source = folders[name]
    ours, theirs = open_model(folder).metadata, open_model(source).metadata
    arch = families()[name].architecture
    for key in theirs:
        if key.startswith((arch, "tokenizer")):
            a, b = ours[key], theirs[key]
            a, b = (np.asarray(v).tolist() if hasattr(v, "__len__") else v for v in (a, b))
            assert a == (pytest.approx(b) if isinstance(b, float) else b), key


@pytest.mark.parametrize("name", NAMES)
def test_converted_to_bf16_not_a_bit_changes(folders, name, tmp_path):
    folder, source = folders[name]
    model, out = open_model(folder), tmp_path / "out.gguf"
    quantize_model(model, out, choose_types(model, preset("BF16"), ()))
    family = families(wide=True)[name]
    got, wanted = (map_weights(read_weights(path), family) for path in (out, source))
    assert got.keys() == wanted.keys()
    for key in wanted:
        # Norms went through the folder as bf16.
        value = torch.tensor(wanted[key]).to(torch.bfloat16).float().numpy()
        assert np.array_equal(got[key], value), key


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K", "Q8_0", "IQ4_XS"])
def test_quantised_tensors_read_back_bit_for_bit(folders, kind, tmp_path):
    folder, _ = folders["qwen3moe"]
    model, out = open_model(folder), tmp_path / "out.gguf"
    types = choose_types(model, preset(kind), ())
    report = quantize_model(model, out, types, preset(kind).file_type, threads=3)
    assert report.outcomes.keys() == model.tensors.keys()
    reader = gguf.GGUFReader(out)
    assert reader.get_field("general.file_type").contents() == preset(kind).file_type
    for tensor in reader.tensors:
        assert tensor.tensor_type.name.lower() == types[tensor.name]
        floats = model.dequantize(tensor.name)
        rows = floats.reshape(-1, floats.shape[-1])
        ours = _core.quantize(rows, types[tensor.name])
        assert np.array_equal(tensor.data.view(np.uint8).reshape(-1), ours.reshape(-1))
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
        ours = _core.dequantize(ours, types[tensor.name])
        assert np.array_equal(theirs.reshape(-1), ours)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_says_what_its_weights_say(folders, name, tmp_path):
    folder, source = folders[name]
    wanted = Reference.load(source, families(wide=True)[name])
    for parameter in wanted.model.parameters():  # but not the rotary frequencies
        parameter.data = parameter.data.bfloat16().float()
    model = load_with(folder, write_rules(tmp_path, folder), "f32")
    result = compare(wanted.logits(IDS), logits(model, IDS))
    assert result.kl_max < 1e-6 and result.top1 == 1


def as_stored(folder) -> str:
    """The family's shipped rules, with weights loaded as they are stored."""
    text = shipped_rules(family_of(open_model(folder))).read_text()
    for operator in ("linear", "embedding", "moe.experts"):
        plain = f"operator: {operator}, backend: cpu}}"
        text = text.replace(plain, plain[:-1] + ", options: {quant: file}}")
    assert "quant: file" in text
    return text


@pytest.mark.parametrize("quant", ["auto", "q4_k", "int4g128"])
def test_a_rule_says_what_weights_become(folders, quant, tmp_path):
    folder, _ = folders["qwen3moe"]
    rules = tmp_path / "rules.yaml"
    rules.write_text(as_stored(folder).replace("quant: file", f"quant: {quant}"))
    model = load_with(folder, rules, "f32")
    kinds = {"auto": "q8_0", "int4g128": "q4_0"}
    experts = model.kt.gguf.tensor("blk.1.ffn_up_exps.weight")
    assert experts.type == kinds.get(quant, quant)
    row = model.kt.plan.row("model.layers.1.mlp.experts")
    bits = {"auto": 8.5, "q4_k": 4.5, "int4g128": 4.5}[quant]
    values = 3 * 8 * 256 * 256
    assert row.nbytes == values * bits / 8
    # The same weights rounded the same way by the other path.
    out = tmp_path / "out.gguf"
    source = open_model(folder)
    if quant != "int4g128":
        kind = kinds.get(quant, quant)
        types = {n: kind if len(i.shape) > 1 else "f32" for n, i in source.tensors.items()}
        types |= {n: "f32" for n in types if n.endswith("ffn_gate_inp.weight")}
        quantize_model(source, out, types)
        again = load(out, "f32", True)
        assert np.array_equal(logits(model, IDS), logits(again, IDS))


def load_with(folder, rules, activations):
    from ktransformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(folder), activations=activations, optimize_config_path=str(rules)
    )


def test_int4g128_has_one_scale_for_128_values():
    x = np.random.default_rng(0).normal(0, 0.05, (32, 512)).astype(np.float32)
    blocks, facts = _core.requantize(x, "f32", 32, 512, "int4g128", threads=2)
    scales = blocks.reshape(-1, 18)[:, :2].copy().view(np.float16).reshape(-1, 4)
    assert (scales == scales[:, :1]).all()
    values = _core.dequantize(blocks, "q4_0").reshape(x.shape)
    error = np.sqrt(np.mean((values - x) ** 2) / np.mean(x**2))
    assert error == pytest.approx((facts["error"] / facts["power"]) ** 0.5, rel=1e-4)
    # Rounding to the plain grid, the largest value at its end, is what a simple packer does.
    groups = x.reshape(-1, 128)
    step = np.abs(groups).max(axis=1, keepdims=True) / 7
    simple = np.clip(np.round(groups / step), -8, 7) * step
    assert error < np.sqrt(np.mean((simple - groups) ** 2) / np.mean(groups**2))


def e4m3(folder, name: str):
    """A folder whose matrices are stored as DeepSeek's FP8 folders are: E4M3 and block scales."""
    state, out = load_file(folder / "model.safetensors"), {}
    for key, value in state.items():
        if (
            value.ndim != 2
            or "norm" in key
            or ".gate." in key
            or key.startswith(("lm_", "model.emb"))
        ):
            out[key] = value
            continue
        rows, cols = value.shape
        padded = torch.nn.functional.pad(value.float(), (0, -cols % 128, 0, -rows % 128))
        blocks = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
        scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
        stored = (blocks / scale).to(torch.float8_e4m3fn)
        out[key] = stored.flatten(2, 3).flatten(0, 1)[:rows, :cols].contiguous()
        out[key + "_scale_inv"] = scale[:, 0, :, 0].contiguous()
    return out


def fp8_values(state, name: str) -> torch.Tensor:
    stored, scale = state[name].float(), state[name + "_scale_inv"]
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return stored * wide[: stored.shape[0], : stored.shape[1]]


def test_fp8_blocks_are_what_torch_makes_of_them(folders, tmp_path):
    folder, source = folders["deepseek_v3_whole"]
    target = tmp_path / "fp8"
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    state = e4m3(folder, "deepseek_v3_whole")
    assert any(value.dtype == torch.float8_e4m3fn for value in state.values())
    save_file(state, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
    }  # fmt: skip
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}
    (target / "config.json").write_text(json.dumps(config))

    model = open_model(target)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert model.stored_type("blk.1.ffn_up_exps.weight") == "fp8"
    assert np.array_equal(model.dequantize("blk.1.ffn_up_exps.weight")[3], fp8_values(state, name))
    out = tmp_path / "out.gguf"
    quantize_model(model, out, choose_types(model, preset("Q8_0"), ()))
    a = load_with(target, write_rules(tmp_path, target), "f32")
    wanted = Reference.load(source, families(wide=True)["deepseek_v3_whole"])
    with torch.no_grad():
        for key, slot in wanted.model.named_parameters():
            if key + "_scale_inv" in state:
                slot.copy_(fp8_values(state, key).bfloat16())
            elif key in state:
                slot.copy_(state[key])
        for layer in (1, 2):
            experts = wanted.model.model.layers[layer].mlp.experts
            for e in range(16):
                gate, up, down = (
                    fp8_values(state, f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight")
                    for part in ("gate", "up", "down")
                )
                experts.gate_up_proj[e] = torch.cat([gate, up]).bfloat16()
                experts.down_proj[e] = down.bfloat16()
    assert compare(wanted.logits(IDS), logits(a, IDS)).kl_max < 1e-4
    exact = load(out, "f32", True)
    assert compare(logits(a, IDS), logits(exact, IDS)).kl_mean < 0.01  # rounded to q8_0


def write_rules(tmp_path, folder):
    path = tmp_path / "as_stored.yaml"
    path.write_text(as_stored(folder))
    return path


def test_a_type_that_is_too_coarse_is_left_for_a_higher_one(folders, tmp_path, caplog):
    """One value of a row a thousand times the others: no type with blocks of 256 can hold both."""
    folder, _ = folders["qwen3moe"]
    target = copy_folder(folder, tmp_path / "outlier")
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    value = torch.full_like(state[name], 1e-3)
    value[:, ::32] = 2.0
    value[:, 1::2] *= -1
    state[name] = value
    huge = state["model.layers.1.self_attn.v_proj.weight"]
    huge[3, 5] = 3e38
    save_file(state, target / "model.safetensors", {"format": "pt"})
    rules = tmp_path / "rules.yaml"
    rules.write_text(as_stored(folder).replace("quant: file", "quant: q4_0"))
    model = load_with(target, rules, "f32")
    notes = [note for note in model.kt.plan.notes if "instead of q4_0" in note]
    assert any(note.startswith("blk.1.attn_v.weight: bf16") for note in notes)
    assert all(note in model.kt.notes for note in notes)
    assert model.kt.plan.row("model.layers.1.self_attn.v_proj").types == {
        "blk.1.attn_v.weight": "bf16"
    }


def copy_folder(folder, target):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_an_interrupted_conversion_goes_on(folders, tmp_path, monkeypatch):
    folder, _ = folders["mixtral"]
    model = open_model(folder)
    types = choose_types(model, preset("Q4_K_M"), ())
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    quantize_model(model, whole, types)
    monkeypatch.setattr("ktransformers.checkpoint.quantize.SYNC_BYTES", 1)
    stop = list(types)[len(types) // 2]

    def interrupt(_done, _total, name):
        if name == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(model, out, types, progress=interrupt)
    assert not out.exists() and (tmp_path / "out.gguf.part").exists()
    report = quantize_model(model, out, types)
    assert report.resumed == len(types) // 2
    assert stop in report.outcomes and list(types)[0] not in report.outcomes
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("out.gguf.part*"))


def test_another_recipe_does_not_go_on_with_what_is_there(folders, tmp_path, monkeypatch):
    folder, _ = folders["mixtral"]
    model, out = open_model(folder), tmp_path / "out.gguf"
    monkeypatch.setattr("ktransformers.checkpoint.quantize.SYNC_BYTES", 1)

    def interrupt(done, total, _name):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(model, out, choose_types(model, preset("Q8_0"), ()), progress=interrupt)
    report = quantize_model(model, out, choose_types(model, preset("Q6_K"), ()))
    assert report.resumed == 0 and len(report.outcomes) == len(model.tensors)
    open_model(out)


def test_the_command(folders, tmp_path, capsys):
    folder, _ = folders["qwen3moe"]
    out = tmp_path / "small.gguf"
    words = ["quantize", str(folder), str(out), "q4_k_m", "--tensor", "attn_k.weight=q8_0"]
    assert main(words) == 0
    assert "largest error" in capsys.readouterr().out
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    assert kinds["blk.0.attn_k.weight"] == "Q8_0" and kinds["output.weight"] == "Q6_K"
    assert main(["inspect", str(folder)]) == 0
    assert "architecture: qwen3moe" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, told",
    [
        (["{}", "{}/x.gguf", "q9"], "preset 'q9': choose Q4_K_M"),
        (["{}", "{}/x.bin"], "end its name in .gguf"),
        (["{}", "/nowhere/x.gguf"], "no folder that can be written to"),
        (["{}", "{}/x.gguf", "--tensor", "nothing=q8_0"], "matches no tensor"),
        (["{}", "{}/x.gguf", "--tensor", "attn_q"], "write REGEX=TYPE"),
        (["{}", "{}/x.gguf", "--tensor", "attn_q=iq1_s"], "cannot be written"),
        (["{}", "{}/x.gguf", "--tensor", "(=q8_0"], "bad pattern"),
        (["{}", "{}/x.gguf", "--recipe", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_wrong_words_are_one_line(folders, words, told, capsys):
    folder, _ = folders["mixtral"]
    assert main(["quantize", *(word.format(folder) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in lines[-1] and lines[-1].startswith("error: ")
    assert not list(folder.glob("*.gguf*"))


def test_bad_folders_are_refused_by_name(folders, tmp_path):
    folder, _ = folders["qwen3moe"]

    def told(**files) -> str:
        target = copy_folder(folder, tmp_path / f"bad{len(list(tmp_path.iterdir()))}")
        for name, data in files.items():
            path = target / name.replace("__", ".")
            path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
        with pytest.raises(UserError) as error:
            open_model(target)
        assert "\n" not in str(error.value)
        return str(error.value)

    stored = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    index = {"weight_map": {"a": "m-00001-of-00002.safetensors"}}
    text = json.dumps(index).encode()
    assert "1 of 1 shards is missing" in told(**{"model.safetensors.index.json": text})
    pickled = json.dumps({"weight_map": {"a": "pytorch_model.bin"}}).encode()
    assert "was not opened" in told(**{"model.safetensors.index.json": pickled})
    assert "was not opened" in told(**{"model.safetensors": None, "pytorch_model.bin": b"\x80"})
    assert "no file name" in told(
        **{"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}
    )
    assert "header has" in told(**{"model.safetensors": b"\xff" * 16})
    assert "is not described" in told(**{"model.safetensors": header({"a": {"dtype": "F32"}})})
    outside = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    assert "lies at" in told(**{"model.safetensors": header(outside)})
    assert "lies at" in told(**{"model.safetensors": stored[:-40]})
    asks = json.dumps(config | {"model_type": "x", "auto_map": {"A": "m.C"}}).encode()
    assert "never run" in told(**{"config.json": asks})
    quip = json.dumps(config | {"quantization_config": {"quant_method": "quip"}}).encode()
    assert "'quip' cannot be read" in told(**{"config.json": quip})
    hidden = json.dumps(config | {"num_local_experts": 9}).encode()
    assert "expert 8 is missing" in told(**{"config.json": hidden})


def header(tensors: dict) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def test_values_that_are_not_finite_are_refused(folders, tmp_path):
    folder, _ = folders["qwen3moe"]
    target = copy_folder(folder, tmp_path / "nan")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.q_proj.weight"][1, 2] = float("nan")
    save_file(state, target / "model.safetensors", {"format": "pt"})
    model = open_model(target)
    with pytest.raises(UserError, match="blk.0.attn_q.weight: 1 values are not finite"):
        quantize_model(model, tmp_path / "o.gguf", choose_types(model, preset("Q8_0"), ()))
    assert not (tmp_path / "o.gguf").exists()


def test_a_folder_opens_as_a_folder_model(folders):
    assert isinstance(open_model(folders["mixtral"][0]), FolderModel)
