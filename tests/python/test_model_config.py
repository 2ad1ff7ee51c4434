"""Configurations from GGUF metadata and from folders, and generation settings."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_tokenizer_files import EMPTY, SETTINGS, backend_json, folder
from tokenizer_cases import Metadata, tiny_bpe

from ktransformers.checkpoint.config_files import ModelFolder
from ktransformers.checkpoint.generation_config import read_generation_config
from ktransformers.checkpoint.gguf import open_model
from ktransformers.checkpoint.tokenizer import build_tokenizer
from ktransformers.errors import UserError
from ktransformers.models.config import config_from_folder, read_config
from tests.support.families import families
from tests.support.miniatures import miniature, write

FAMILIES = families()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """(transformers configuration, open miniature) of every family."""
    path = tmp_path_factory.mktemp("miniature") / "model.gguf"
    family = FAMILIES[request.param]
    return family, open_model(write(miniature(request.param), path))


def hf_config(family) -> dict:
    """The config.json that transformers itself writes for the family."""
    import transformers

    cls = getattr(transformers, family.model + "Config")
    return json.loads(cls(**family.config).to_json_string(use_diff=False))


def test_metadata_give_the_configuration(model):
    family, gguf = model
    found = read_config(gguf)
    assert found["architectures"] == [family.model + "ForCausalLM"]
    assert found["model_type"] == hf_config(family)["model_type"]
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert found[field] == family.config[field]


def test_a_folder_of_the_same_model_changes_nothing_but_what_it_says(model, tmp_path):
    family, gguf = model
    given = hf_config(family) | {"rms_norm_eps": 0.5, "auto_map": {"AutoModel": "evil.Evil"}}
    found = read_config(gguf, folder(tmp_path, config__json=given))
    assert found["rms_norm_eps"] == 0.5
    assert found["rope_parameters"] == read_config(gguf)["rope_parameters"]
    assert "auto_map" not in found
    shapes = ("hidden_size", "intermediate_size", "num_key_value_heads", "tie_word_embeddings")
    assert {f: found[f] for f in shapes} == {f: given[f] for f in shapes}


def test_a_folder_of_another_family_is_refused(model, tmp_path):
    family, gguf = model
    other = next(f for f in FAMILIES.values() if f.model != family.model)
    with pytest.raises(UserError, match=f"config.json: describes a .* model, but {gguf.path}"):
        read_config(gguf, folder(tmp_path, config__json=hf_config(other)))


def test_a_folder_with_a_tokenizer_only_leaves_the_configuration_to_the_gguf(model, tmp_path):
    _, gguf = model
    assert read_config(gguf, tmp_path) == read_config(gguf)


DEEPSEEK = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "quantization_config": {"quant_method": "fp8"},
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
DEEPSEEK_GGUF = Metadata(
    {
        "general.architecture": "deepseek2",
        "deepseek2.embedding_length": 64,
        "deepseek2.block_count": 4,
        "deepseek2.nextn_predict_layers": 1,
        "deepseek2.attention.head_count": 4,
    },
    "model.gguf",
)


def config(tmp_path, values, gguf=None):
    return config_from_folder(ModelFolder(folder(tmp_path, config__json=values)), gguf)


def test_what_concerns_code_and_stored_weights_is_dropped(tmp_path):
    found = config(tmp_path, DEEPSEEK)
    assert found["hidden_size"] == 64 and found["model_type"] == "deepseek_v3"
    assert not {"auto_map", "quantization_config", "torch_dtype"} & set(found)


def test_a_known_class_under_another_model_type(tmp_path):
    found = config(tmp_path, DEEPSEEK | {"model_type": "kimi_k2"}, DEEPSEEK_GGUF)
    assert found["model_type"] == "deepseek_v3"
    assert found["architectures"] == ["DeepseekV3ForCausalLM"]


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"model_type": "evil", "architectures": ["Evil"]}, "asks for code from the folder"),
        ({"model_type": None, "architectures": None}, "model type None is not known"),
        ({"model_type": ["llama"], "architectures": "x"}, "model type \\['llama'\\] is not known"),
        ({"hidden_size": 128}, "hidden_size is 128, but model.gguf has 64"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_hidden_layers": 61}, "num_hidden_layers is 61, but model.gguf has 3"),
        ({"num_attention_heads": None}, "num_attention_heads is None"),
        ({"model_type": "qwen3"}, "a qwen3 model, but model.gguf holds architecture 'deepseek2'"),
    ],
)
def test_configurations_that_are_refused(change, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        config(tmp_path, DEEPSEEK | change, DEEPSEEK_GGUF)


def test_no_code_of_a_folder_is_imported(tmp_path):
    """A canary module beside the files must not run, though everything names it."""
    mark = tmp_path / "ran"
    (tmp_path / "configuration_deepseek.py").write_text(f"open({str(mark)!r}, 'w')")
    (tmp_path / "tokenizer.py").write_text(f"open({str(mark)!r}, 'w')")
    folder(tmp_path, config__json=DEEPSEEK, tokenizer__json=backend_json(tiny_bpe()),
           tokenizer_config__json=SETTINGS)  # fmt: skip
    config_from_folder(ModelFolder(tmp_path), DEEPSEEK_GGUF)
    build_tokenizer(EMPTY, tmp_path)
    assert not mark.exists()


def test_reading_a_configuration_imports_neither_torch_nor_transformers(tmp_path):
    folder(tmp_path, config__json=DEEPSEEK)
    code = (
        "import sys; from ktransformers.models.config import *; "
        f"config_from_folder(open_folder({str(tmp_path)!r})); "
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- generation settings ----


def test_generation_settings_of_a_gguf():
    gguf = tiny_bpe()
    gguf.metadata.update({"general.sampling.temp": 0.6, "general.sampling.top_k": 20})
    found = read_generation_config(gguf)
    assert found == {
        "bos_token_id": 266, "eos_token_id": [267], "pad_token_id": 267, "temperature": 0.6,
        "top_k": 20,
    }  # fmt: skip


def test_generation_settings_of_a_folder_win(tmp_path):
    values = {"eos_token_id": [3, 267], "temperature": 0.7, "top_p": 1, "do_sample": True, "x": 1}
    folder(tmp_path, generation_config__json=values)
    found = read_generation_config(tiny_bpe(), tmp_path)
    assert found["eos_token_id"] == [3, 267]
    assert (found["temperature"], found["top_p"], found["do_sample"]) == (0.7, 1, True)
    assert "x" not in found


@pytest.mark.parametrize(
    "values",
    [
        {"eos_token_id": 270}, {"eos_token_id": -1}, {"eos_token_id": [True]},
        {"eos_token_id": "2"}, {"temperature": "hot"}, {"temperature": -1}, {"top_p": 2},
        {"temperature": float("nan")}, {"top_k": -1}, {"repetition_penalty": True},
    ],
)  # fmt: skip
def test_generation_settings_out_of_range(values, tmp_path):
    folder(tmp_path, generation_config__json=values)
    with pytest.raises(UserError, match=f"generation_config.json: {next(iter(values))}: "):
        read_generation_config(tiny_bpe(), tmp_path)


def test_sampling_in_metadata_is_checked():
    gguf = tiny_bpe()
    gguf.metadata["general.sampling.top_p"] = 7.0
    with pytest.raises(UserError, match="general.sampling.top_p: 7.0 is outside 0.0..1.0"):
        read_generation_config(gguf)


def test_a_tensor_nobody_takes_is_refused(tmp_path):
    import numpy as np
    import pytest
    from gguf import GGMLQuantizationType as Type

    from ktransformers import AutoModelForCausalLM
    from ktransformers.errors import UserError
    from tests.support.miniatures import Tensor, miniature, write

    model = miniature("llama")
    model.tensors["blk.1.ffn_up.scale"] = Tensor(Type.F32, np.ones(1, np.float32).view(np.uint8))
    path = write(model, tmp_path / "scaled.gguf")
    with pytest.raises(UserError, match=r"scaled.gguf: tensor blk.1.ffn_up.scale: this build"):
        AutoModelForCausalLM.from_pretrained(path, cpu_infer=1)


def test_the_page_of_families_names_them_all():
    from ktransformers.checkpoint.hf_metadata import ARCHITECTURES
    from ktransformers.models.registry import families as supported
    from ktransformers.models.registry import family_for

    page = (Path(__file__).parents[2] / "docs/families.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    found = {cells[0].strip("`"): cells for cells in rows}
    assert found.keys() == {family.name for family in supported()}
    for family in supported():
        _, _, architecture, types = found[family.name]
        assert re.findall(r"`(\w+)`", architecture) == list(family.gguf_architectures)
        named = re.findall(r"`(\w+)`", types)
        assert set(family.hf_model_types) <= set(named) <= set(ARCHITECTURES)
    with pytest.raises(UserError, match="'mamba2'.*docs/families.md"):
        family_for("mamba2")
