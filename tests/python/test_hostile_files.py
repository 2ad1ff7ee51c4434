"""Files made to harm: one line with the place and status 2, and nothing they name is ever run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ktransformers.cli.main import main
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]
OWN = "- match: {{name: '{name}'}}\n  replace: {{operator: {operator}{more}}}\n  why: x\n"
UPSTREAM = "- match:\n    name: '{name}'\n  replace:\n    class: {cls}\n{more}"
SLOW = r"^(\w|.)*(.+.+)+\1[^a-z_.0-9]"
LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
)

# name -> (text, what is said, with the place)
HOSTILE = {
    "alias": ("- match: &m {name: x}\n- match: *m\n", r"1:\d+: .*anchor"),
    "laughs": (LAUGHS + "\n", r"1:\d+: .*anchor"),
    "merge": ("- {match: {<<: {name: x}}, replace: {operator: linear}, why: x}\n", r"1:\d+: "),
    "deep": ("- " + "[" * 4000 + "]" * 4000 + "\n", r"1:\d+: .*deep|1:\d+: .*level"),
    "deep maps": ("- " + "{a: " * 900 + "1" + "}" * 900 + "\n", r"1:\d+: "),
    "deep blocks": ("".join("  " * n + "a:\n" for n in range(400)), r"\d+:\d+: "),
    "huge file": ("# " + "x" * (300 << 10) + "\n", r"larger|262144|256 KiB"),
    "huge name": (OWN.format(name="x" * 100_000, operator="linear", more=""),
                  r"1:\d+: the pattern has 100000"),
    "huge number": ("- " + "9" * 200_000 + "\n", r"1:\d+: |larger"),
    "huge key": ("- {" + "k" * 100_000 + ": 1}\n", r"1:\d+: "),
    "tag": ("- !!python/object/apply:os.system ['touch pwned']\n", r"1:\d+: .*tag"),
    "object": ("- !!python/name:os.system\n", r"1:\d+: .*tag"),
    "two documents": ("- {}\n---\n- {}\n", r"\d:\d+: a second document"),
    "duplicate": ("- {match: {name: a}, match: {name: b}}\n", r"1:\d+: .*twice|1:\d+: .*duplicate"),
    "nul": ("- match: {name: 'a\0b'}\n", r"1:\d+: "),
    "slow pattern": (OWN.format(name=SLOW, operator="linear", more=""), r"1:\d+: pattern .* needs"),
    "huge class": (UPSTREAM.format(name="x", cls="c" * 100_000, more=""), r"4:\d+: unknown class"),
    "broken pattern": (OWN.format(name="([4-10]", operator="linear", more=""), r"1:\d+: .*pattern"),
    "option": (OWN.format(name="lm_head", operator="linear", more=", options: {evil: 1}"),
               r"2:\d+: .*no option 'evil'"),
    "device": (OWN.format(name="lm_head", operator="linear", more=", backend: cuda, device: tpu:0"),
               r"2:\d+: 'tpu:0' is no device"),
    "operator": (OWN.format(name="lm_head", operator="os.system", more=""),
                 r"2:\d+: unknown operator 'os.system'"),
    "class": (UPSTREAM.format(name="lm_head", cls="os.system", more=""),
              r"4:\d+: unknown class 'os.system'"),
    "class in the folder": (UPSTREAM.format(name="lm_head", cls="evil_module.Evil", more=""),
                            r"4:\d+: unknown class 'evil_module.Evil'"),
    "op": (UPSTREAM.format(name="lm_head", cls="ktransformers.operators.linear.KTransformersLinear",
                           more="    kwargs: {generate_op: evil_module.Evil}\n"),
           r"5:\d+: unknown op 'evil_module.Evil'"),
    "match class": ("- match: {class: evil_module.Evil}\n  replace: {class: default}\n",
                    r"1:\d+: unknown class 'evil_module.Evil'"),
    "upstream device": (UPSTREAM.format(
        name="lm_head", cls="default", more="    kwargs: {generate_device: '/dev/sda'}\n"),
        r"5:\d+: '/dev/sda' is no device"),
    "not text": (b"\xff\xfe- \x80", r"UTF-8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return write(miniature("qwen3", types="Q8_0"), tmp_path_factory.mktemp("h") / "m.gguf")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_rule_file_is_one_line_with_its_place(name, model_file, tmp_path, capsys):
    text, told = HOSTILE[name]
    path = tmp_path / "evil.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ["plan", "--gguf_path", str(model_file), "--optimize_config_path", str(path)]
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and len(lines[0]) < 600, lines
    assert re.search(rf"^error: {re.escape(str(path))}:.*", lines[0])
    assert re.search(told, lines[0].partition(path.name + ":")[2]), lines[0]
    # The same words from the commands that would load the model.
    for command in ("chat", "serve"):
        if name == "slow pattern":
            continue  # it needs the model's names
        assert main([command, *words[1:]]) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1] == lines[0]


@pytest.mark.parametrize("name", ["laughs", "deep", "huge file", "tag", "duplicate", "nul"])
def test_other_yaml_files_are_read_alike(name, model_file, tmp_path, capsys):
    text, told = HOSTILE[name]
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    for words in (
        ["plan", "--known", "Mixtral-8x7B", "--machine", str(path)],
        ["quantize", str(model_file), str(tmp_path / "o.gguf"), "--recipe", str(path)],
        ["rules", "check", str(path), "--model", "Mixtral-8x7B"],
        ["compare", str(path), str(path), "--gguf_path", str(model_file)],
    ):
        assert main(words) == 2, words
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(path) in line and re.search(told, line.partition(path.name + ":")[2]), line


# Runs every command line with a hook that notes what the interpreter is asked to do.
WATCHED = r"""
import json, sys
seen = {"open": [], "exec": [], "process": [], "pickle": []}
armed = False

def hook(event, args):
    if not armed:
        return
    if event == "open" and isinstance(args[0], (str, bytes)):
        seen["open"].append(args[0] if isinstance(args[0], str) else args[0].decode())
    elif event == "exec":
        seen["exec"].append(getattr(args[0], "co_filename", ""))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        seen["process"].append(f"{event} {args[0] if args else ''}")
    elif event.startswith("pickle."):
        seen["pickle"].append(event)

sys.addaudithook(hook)
from ktransformers.cli.main import main
armed = True
status = [main(words) for words in json.loads(sys.argv[1])]
armed = False
print("\n" + json.dumps({"status": status, "modules": sorted(sys.modules), **seen}))
"""


def watched(commands: list[list[str]], folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands)], capture_output=True, text=True,
        cwd=folder, env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


EVIL = "from pathlib import Path\nPath(__file__).with_name('pwned').touch()\nclass Evil: pass\n"


def test_nothing_a_file_names_is_imported_opened_or_run(model_file, tmp_path):
    """evil_module can be imported, and each file asks for it in its own way."""
    (tmp_path / "evil_module.py").write_text(EVIL)
    commands = []
    for name in ("class in the folder", "op", "match class", "tag", "object", "operator"):
        rules = tmp_path / f"{name.replace(' ', '_')}.yaml"
        rules.write_text(HOSTILE[name][0])
        commands.append(["plan", "--gguf_path", str(model_file), "--optimize_config_path",
                         str(rules)])  # fmt: skip
    own = tmp_path / "own.yaml"
    own.write_text(OWN.format(name="lm_head", operator="evil_module.Evil", more=""))
    commands.append(["rules", "check", str(own), "--model", "Qwen3-8B"])
    for kind in ("auto_map", "pickles", "missing shard", "pickle by another name"):
        folder = hostile_folder(tmp_path / kind.replace(" ", "_"), kind)
        commands += [["plan", "--gguf_path", str(folder)], ["inspect", str(folder)],
                     ["quantize", str(folder), str(tmp_path / "o.gguf")]]  # fmt: skip
    found = watched(commands, tmp_path)
    assert found["status"] == [2] * len(commands)
    assert not [one for one in found["modules"] if "evil" in one]
    assert not [one for one in found["open"] if one.endswith((".bin", ".pt", ".pkl"))]
    assert not [one for one in found["open"] if "evil_module" in one or "modeling_evil" in one]
    assert not [one for one in found["exec"] if str(tmp_path) in one]
    assert found["process"] == [] and found["pickle"] == []
    assert not list(tmp_path.rglob("pwned"))
    # The hook sees such a thing where it happens.
    words = ["rules", "check", str(own), "--model", "Qwen3-8B", "--allow-plugin", "evil_module"]
    control = watched([words], tmp_path)
    assert "evil_module" in control["modules"] and (tmp_path / "pwned").exists()
    assert any("evil_module" in one for one in control["open"])
    assert any("evil_module" in one for one in control["exec"])


def hostile_folder(path: Path, kind: str) -> Path:
    path.mkdir()
    config = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 128,
        "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512, "rope_theta": 1e4, "tie_word_embeddings": True,
    }  # fmt: skip
    (path / "modeling_evil.py").write_text(EVIL)
    if kind == "auto_map":
        config |= {
            "model_type": "evil", "architectures": ["EvilForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
                         "AutoConfig": "evil_module.Evil"},
        }  # fmt: skip
        (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    elif kind == "pickles":
        (path / "pytorch_model.bin").write_bytes(b"cevil_module\nEvil\n.")
        (path / "consolidated.00.pth").write_bytes(b"cevil_module\nEvil\n.")
    elif kind == "missing shard":
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        (path / names["a"]).write_bytes((2).to_bytes(8, "little") + b"{}")
    else:
        (path / "model.safetensors").write_bytes(b"cevil_module\nEvil\n." + b"\0" * 32)
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    "kind, told",
    [("auto_map", "config.json"), ("pickles", "was not opened"), ("missing shard", "is missing"),
     ("pickle by another name", "model.safetensors")],
)  # fmt: skip
def test_hostile_folders_are_one_line(kind, told, tmp_path, capsys):
    folder = hostile_folder(tmp_path / "f", kind)
    for words in (["plan", "--gguf_path", str(folder)], ["inspect", str(folder)],
                  ["chat", "--gguf_path", str(folder)], ["serve", "--gguf_path", str(folder)],
                  ["quantize", str(folder), str(tmp_path / "o.gguf")]):  # fmt: skip
        assert main(words) == 2, words
        err = capsys.readouterr().err.strip().splitlines()
        assert told in err[-1] and str(folder) in err[-1] and "Traceback" not in "".join(err)
