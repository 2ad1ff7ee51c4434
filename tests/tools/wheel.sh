#!/usr/bin/env bash
# The wheel as a stranger gets it: built, checked, installed into an empty environment without torch.
set -eu
cd "$(dirname "$0")/../.."
venv=${VENV:-.venv}
make wheel VENV="$venv"
wheel=$(ls dist/ktransformers-*.whl)
[ "$(wc -l <<<"$wheel")" = 1 ] || { echo "FAILED: more than one wheel: $wheel" >&2; exit 1; }
case $wheel in *manylinux*) ;; *) echo "FAILED: $wheel carries no manylinux tag" >&2; exit 1 ;; esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$venv/bin/python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy regex # what the rules need; no torch
"$work/venv/bin/pip" install -q --no-deps "$wheel"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import importlib.metadata as metadata
import importlib.util
import pathlib
import subprocess

from ktransformers import _core

assert "site-packages" in _core.__file__, _core.__file__
assert importlib.util.find_spec("torch") is None, "this environment must have no torch"
isas = {isa["name"] for isa in _core.cpu_info()["isas"]}
assert isas >= {"scalar", "avx2", "avxvnni", "avx512", "avx512bf16", "amx"}, isas

# What the module and the libraries beside it ask of the system; what they bring is in the wheel.
folder = pathlib.Path(_core.__file__).parent
brought = {path.name for path in folder.parent.glob("ktransformers.libs/*.so*")}
assert any(name.startswith("libyaml-cpp") for name in brought), brought
files = [_core.__file__, *folder.parent.glob("ktransformers.libs/*.so*")]
needed = set()
for file in files:
    dynamic = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True)
    needed |= {line.split("[")[1].rstrip("]") for line in dynamic.stdout.splitlines() if "(NEEDED)" in line}
system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2", "libpthread.so.0", "libdl.so.2"}
assert needed <= system | brought, f"asks for {needed - system - brought}"

from ktransformers.optimize.rules import load_rules

rules = [file for file in metadata.files("ktransformers") if str(file).endswith(".yaml")]
assert rules, "no rule files in the wheel"
for file in rules:
    load_rules(file.locate())
print("wheel:", ", ".join(sorted(isas)), "in; needs", ", ".join(sorted(needed & system)))
print("rule files:", len(rules))
PY
"$work/venv/bin/python" -c 'import runpy, sys; sys.argv = ["x", "doctor"]; runpy.run_module("ktransformers.cli.main", run_name="__main__")' >doctor.txt || true
grep -q "^BAD   torch" doctor.txt && grep -q "^ok    core" doctor.txt || { cat doctor.txt; exit 1; }
echo "passed: $(basename "$wheel")"
