"""What loading says of memory beforehand, and what it refuses."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from ktransformers import AutoModelForCausalLM, _core
from ktransformers.checkpoint.gguf import open_model
from ktransformers.errors import UserError
from ktransformers.runtime import memory
from ktransformers.runtime.loading import model_config
from tests.support.families import families
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


@pytest.mark.parametrize("name", sorted(families()))
@pytest.mark.parametrize("kv_type", [None, "f16", "f32"])
def test_what_is_foretold_is_what_is_taken(tmp_path, name, kv_type):
    path = write(miniature(name, "Q8_0"), tmp_path / "m.gguf")
    gguf = open_model(path)
    plan = memory.memory_plan(gguf, model_config(gguf)[1], 300, kv_type)
    model = AutoModelForCausalLM.from_pretrained(str(path), cache_lens=300, kv_type=kv_type)
    engine = model.kt.engine
    assert plan.cache == engine.kv.bytes_per_position * 300
    assert memory.cache_widths(model_config(gguf)[1]) == engine.widths
    held = sum(t.nbytes for n, t in gguf.tensors.items() if n != "token_embd.weight")
    is_tied = "output.weight" not in gguf.tensors
    assert plan.weights == held + (plan.embedding if is_tied else 0)


def test_the_cache_type_that_suits_a_model():
    assert memory.default_kv_type([(512, 512, 4)] * 3) == "i16"
    assert memory.default_kv_type([(512, 512, 4), (80, 80, 4)]) == "f16"
    assert memory.default_kv_type([(576, 0, 1)]) == "f16"


def test_a_cache_type_that_a_model_cannot_have_is_refused(tmp_path):
    path = write(miniature("deepseek_v3", "Q8_0"), tmp_path / "m.gguf")
    with pytest.raises(UserError, match="i16 holds keys and values by heads"):
        AutoModelForCausalLM.from_pretrained(str(path), kv_type="i16")


def test_memory_of_this_process():
    info = _core.memory_info()
    assert 0 < info["available"] <= info["total"]
    pages = Path("/proc/meminfo").read_text().split()
    machine = int(pages[pages.index("MemTotal:") + 1]) * 1024
    assert info["total"] <= machine and info["is_grouped"] == (info["total"] < machine)


@pytest.fixture
def small_machine(monkeypatch):
    """A machine of 8 MiB more than what loading works with."""
    info = _core.memory_info() | {"total": 4 * GIB, "available": memory.WORKING_BYTES + (8 << 20)}

    class Core:
        memory_info = staticmethod(lambda: info)
        kv_bytes_per_position = staticmethod(_core.kv_bytes_per_position)
        cpu_info = staticmethod(lambda: _core.cpu_info() | {"numa_nodes": 2})

    monkeypatch.setattr(memory, "_core", Core)
    return info


def test_a_model_that_does_not_fit_is_refused_with_numbers(tmp_path, small_machine):
    path = write(miniature("llama", "Q8_0"), tmp_path / "m.gguf")
    wanted = r"needs 0\.76 GiB of memory .*cache 0\.51 GiB for 1000000 positions.* --in_place"
    with pytest.raises(UserError, match=wanted):
        AutoModelForCausalLM.from_pretrained(str(path), cache_lens=1_000_000)
    model = AutoModelForCausalLM.from_pretrained(str(path), cache_lens=1000)
    assert model.kt.decoder is not None


def test_in_place_is_not_refused(tmp_path, small_machine):
    path = write(miniature("llama", "Q8_0"), tmp_path / "m.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        str(path), cache_lens=1_000_000, in_place=True, weight_cache=tmp_path / "cache"
    )
    assert model.kt.engine.store.in_place


def test_swap_and_numa_balancing_are_warned_of(small_machine):
    small_machine |= {"swap_used": 3 * GIB, "numa_balancing": True}
    swap, balancing = memory.warnings()
    assert "3.0 GiB of swap" in swap and "kernel.numa_balancing=0" in balancing
    small_machine |= {"swap_used": 0, "numa_balancing": False}
    assert memory.warnings() == []


def test_tight_memory_is_told_from_ample():
    plan = memory.MemoryPlan(
        weights=6 * GIB, embedding=GIB, cache=GIB, cache_lens=8192, total=24 * GIB,
        available=20 * GIB, is_grouped=False,
    )  # fmt: skip
    assert plan.fits and not plan.is_tight
    assert dataclasses.replace(plan, available=12 * GIB).is_tight
    assert not dataclasses.replace(plan, available=7 * GIB).fits


def test_dry_run_says_what_is_needed_and_imports_no_torch(tmp_path):
    path = write(miniature("qwen3moe", "Q8_0"), tmp_path / "m.gguf")
    code = (
        "import sys; from ktransformers.local_chat import main; "
        "status = main(['--gguf_path', sys.argv[1], '--dry_run', 'true', '--cache_lens', '999']); "
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = [line.split()[0] for line in done.stdout.splitlines()]
    assert labels == ["weights", "cache", "working", "needed", "available"]
    assert "for 999 positions" in done.stdout and "enough" in done.stdout
