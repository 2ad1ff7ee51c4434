"""Every instruction set this machine can run, each in a process of its own.

The checks themselves are kernel_checks.py (products, feed-forward) and attention_checks.py; here
they are run under KT_CPU_ISA, and what the instruction sets computed is compared between them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ktransformers import _core

ROOT = Path(__file__).parents[2]
ISAS = {row["name"]: row for row in _core.cpu_info()["isas"]}
USABLE = [name for name, row in ISAS.items() if row["usable"]]


def python(code_or_args, isa, tmp_path=None):
    env = os.environ | {"KT_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    if tmp_path is not None:
        env["KT_DUMP"] = str(tmp_path)
    args = ["-c", code_or_args] if isinstance(code_or_args, str) else code_or_args
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True
    )


def need(isa):
    if not ISAS[isa]["usable"]:
        pytest.skip(f"{isa}: this machine lacks {ISAS[isa]['missing']}")


# What is checked of a set that has only some kernels of its own; the others are its parent's.
PRODUCTS, TILES = "linear or bands", "linear or bands or attention"
CHANGED = {
    "amx": PRODUCTS,
    "amx_emulated": PRODUCTS,
    "avx512bf16": PRODUCTS,
    "avxvnni": TILES,
    "avxvnni_evex": TILES,
}


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """Folder of the numbers each instruction set computed, filled by test_checks."""
    return {isa: tmp_path_factory.mktemp(isa) for isa in ISAS}


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_checks(isa, dumps):
    need(isa)
    files = [f"tests/python/{name}_checks.py" for name in ("kernel", "attention")]
    some = ["-k", CHANGED[isa]] if isa in CHANGED else []
    args = ["-m", "pytest", "-p", "no:cacheprovider", "-x", *some, *files]
    done = python(args, isa, dumps[isa])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > (30 if some else 80), done.stdout[-500:]
    assert "skipped" not in done.stdout, done.stdout[-500:]


def test_instruction_sets_agree(dumps):
    """Same integers, same order of blocks: only the last bits of float sums may differ."""
    names = sorted(path.name for path in dumps["scalar"].iterdir())
    assert len(names) == len(_core.formats()), "test_checks of 'scalar' must run before this"
    for isa in USABLE:
        for name in names:
            a, b = np.load(dumps["scalar"] / name), np.load(dumps[isa] / name)
            assert a.files == b.files
            for key in a.files:
                x, y = a[key].astype(np.float64), b[key].astype(np.float64)
                norm, apart = np.linalg.norm(x, axis=1), np.linalg.norm(x - y, axis=1)
                assert (apart <= 1e-6 * norm).all(), (isa, key, apart, norm)


# Sets that take another's integers and floats in the same order by other instructions.
SAME_BITS = [
    ("avx512bf16", "avx512"),
    ("amx", "avx512"),
    ("amx_emulated", "avx512"),
    ("avxvnni", "avx2"),
    ("avxvnni_evex", "avx2"),
]


@pytest.mark.parametrize("isa, parent", SAME_BITS)
def test_a_set_with_a_parent_computes_the_same_bits(dumps, isa, parent):
    need(isa)
    names = sorted(path.name for path in dumps[parent].iterdir())
    assert len(names) == len(_core.formats()), f"test_checks of {parent!r} must run before this"
    for name in names:
        a, b = np.load(dumps[parent] / name), np.load(dumps[isa] / name)
        assert a.files == b.files
        for key in a.files:
            assert np.array_equal(a[key], b[key]), key


def test_twins_stand_for_sets_of_the_build_and_are_only_taken_by_name():
    twins = {name: row["stands_for"] for name, row in ISAS.items() if row["stands_for"]}
    assert twins == {"amx_emulated": "amx", "avxvnni_evex": "avxvnni"}
    assert set(twins.values()) <= set(ISAS) and not set(twins.values()) & set(twins)


SHOW = "from ktransformers import _core; print(_core.Context(1).isa, _core.cpu_info()['isa'])"


@pytest.mark.parametrize("isa", ISAS)
def test_the_forced_instruction_set_is_active(isa):
    need(isa)
    assert python(SHOW, isa).stdout.split() == [isa, isa]


def test_without_a_wish_the_best_usable_one_is_taken():
    env = {k: v for k, v in os.environ.items() if k != "KT_CPU_ISA"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True)
    best = next(name for name in USABLE if not ISAS[name]["stands_for"])
    assert done.stdout.split() == [best] * 2
    assert list(ISAS)[-1] == "scalar" and ISAS["scalar"]["usable"]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", " ", "scalar,avx2"])
def test_an_unknown_instruction_set_is_refused_with_the_choices(name):
    done = python(SHOW, name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: KT_CPU_ISA: instruction set '{name}' is unknown"), last
    assert last.endswith("usable here: " + ", ".join(USABLE)), last


def test_an_unusable_instruction_set_is_refused_with_what_is_missing():
    unusable = [isa for isa in ISAS if isa not in USABLE]
    if not unusable:
        pytest.skip("this machine can run every instruction set of the build")
    for isa in unusable:
        last = python(SHOW, isa).stderr.strip().splitlines()[-1]
        assert f"'{isa}': this machine lacks {ISAS[isa]['missing']}" in last
