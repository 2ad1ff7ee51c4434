"""What is said of memory before a model with a part on a card is loaded, and what is refused."""

import re

import pytest

from ktransformers import _core
from ktransformers.checkpoint.gguf import open_model
from ktransformers.cli.chat_flags import check_request
from ktransformers.cli.serve_flags import check_serve
from ktransformers.errors import UserError
from ktransformers.local_chat import main
from ktransformers.optimize import gpus
from ktransformers.optimize.nvidia import Card
from ktransformers.runtime import memory
from ktransformers.runtime.loading import model_config
from ktransformers.runtime.planning import memory_of
from tests.support.card import (
    ALL,
    BUT_EXPERTS,
    LIBRARY,
    emulated,
    load,
    needs_library,
    on_card_layers,
    rules_for,
    small,
)
from tests.support.miniatures import write

pytestmark = needs_library
POSITIONS = 320
SLOTS = "backend: cuda, device: 'cuda:0', options: {experts: 3}"


@pytest.fixture(autouse=True)
def emulated_card(monkeypatch):
    yield from emulated(monkeypatch)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write(small("qwen3moe"), tmp_path_factory.mktemp("model") / "model.gguf"))


def words_for(path, rules: str | None, *more: str) -> list[str]:
    words = ["--gguf_path", str(path), "--cache_lens", f"{POSITIONS}", *more]
    return [*words, "--optimize_config_path", rules] if rules else words


def foretold(path, rules: str | None, *more: str, **options) -> memory.MemoryPlan:
    """Of a chat with these words, and options that chats have no flag for."""
    request = check_request(words_for(path, rules, "--dry_run", "true", *more))
    return memory_of(request.gguf, request.options | options)


def loaded(path, rules: str | None, monkeypatch, **options):
    """(the loaded model, what loading foretold)."""
    seen, check = [], memory.check_fits
    monkeypatch.setattr(
        memory, "check_fits", lambda plan, path: seen.append(plan) or check(plan, path)
    )
    return load(path, rules, **{"cache_lens": POSITIONS} | options), seen[0]


def slots_for(folder) -> str:
    """Everything on the card but five of eight experts."""
    return rules_for("qwen3_moe", ALL, folder, name="slots.yaml", **{"moe.experts": SLOTS})


def stored(path, pattern: str) -> int:
    """Bytes of the tensors whose names match."""
    tensors = open_model(path).tensors
    return sum(info.nbytes for name, info in tensors.items() if re.search(pattern, name))


def test_ram_is_what_cards_leave(path, tmp_path, monkeypatch):
    """Weights and cache, of layers and experts on either side."""
    own, experts = stored(path, r"^(?!token_embd)"), stored(path, "_exps")
    of_layer = stored(path, r"^blk\.1\.(attn_(q|k|v|output)\.|attn_[qk]_norm|ffn_gate_inp)")
    norms = stored(path, r"^blk\.1\.attn_[qk]_norm")
    placements = {
        "cpu": (None, own, 2),
        "a layer without experts": (on_card_layers("1", tmp_path), own - of_layer + norms, 1),
        "3 of 8 experts": (slots_for(tmp_path), experts * 5 // 8, 0),
        "everything": (rules_for("qwen3_moe", ALL, tmp_path, name="all.yaml"), 0, 0),
    }
    cache = loaded(path, None, monkeypatch)[1].cache
    for name, (rules, weights, layers) in placements.items():
        monkeypatch.undo()
        monkeypatch.setenv("KT_CUDA_LIBRARY", str(LIBRARY))
        model, plan = loaded(path, rules, monkeypatch)
        assert (plan.weights, plan.cache) == (weights, cache * layers // 2), name
        assert plan.cache == model.kt.engine.kv.bytes_per_position * POSITIONS, name
        assert bool(plan.on_cards) == (layers < 2), name


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek_v3"])
def test_the_cards_cache_is_counted_once_and_there(tmp_path, monkeypatch, name):
    """In f16 it is what pages of the CPU's would be, in FP8 what the card then takes less."""
    model_path = write(small(name), tmp_path / "model.gguf")
    rules = rules_for({"qwen3moe": "qwen3_moe"}.get(name, name), BUT_EXPERTS, tmp_path)
    taken, said = [], []
    for kv_type in ("f16", "fp8"):
        model, plan = loaded(model_path, rules, monkeypatch, kv_type=kv_type)
        taken.append(model.kt.engine.card("cuda:0").bytes_taken)
        said.append(plan.on_cards["cuda:0"][1])
        assert plan.cache == 0 == model.kt.engine.kv.bytes_per_position
        assert foretold(model_path, rules, kv_type=kv_type).on_cards == plan.on_cards
        monkeypatch.undo()
        monkeypatch.setenv("KT_CUDA_LIBRARY", str(LIBRARY))
    widths = memory.cache_widths(model_config(open_model(model_path))[1])
    position = _core.kv_bytes_per_position(widths, "f16", "f16")
    assert said[0] == position * (POSITIONS + _core.KV_PAGE)  # a page for rows that fill a step up
    assert taken[0] - taken[1] == said[0] - said[1] > 0


def test_a_model_that_fits_with_its_card_is_not_refused(path, tmp_path, monkeypatch):
    """Chat, server and script, by rules and by the planner; without the card it does not fit."""
    rules = rules_for("qwen3_moe", ALL, tmp_path)
    needed = {gpu: foretold(path, rules, "--gpu", gpu).needed for gpu in ("auto", "off")}
    assert needed["auto"] + 200_000 < needed["off"]
    info = _core.memory_info() | {"available": needed["off"] - 100_000}

    class Core:
        memory_info = staticmethod(lambda: info)
        kv_bytes_per_position = _core.kv_bytes_per_position
        cpu_info = _core.cpu_info

    monkeypatch.setattr(memory, "_core", Core)
    refused = rf"{path}: needs .*lower cache_lens, or run it in place"
    card = Card("NVIDIA H100 80GB HBM3", 80 << 30, 80 << 30, "580")
    monkeypatch.setattr(gpus, "cards", lambda: [card])
    for given in (rules, None):
        for check in (check_request, check_serve):
            check(words_for(path, given))
            with pytest.raises(UserError, match=refused):
                check(words_for(path, given, "--gpu", "off"))
        assert load(path, given, cache_lens=64).kt.decoder is not None
        with pytest.raises(UserError, match=refused):
            load(path, given, cache_lens=POSITIONS, gpu="off")
    # Nor by a device map that means the CPU; loading says so, for it knows the plan.
    with pytest.raises(UserError, match=refused):
        load(path, rules, cache_lens=POSITIONS, device_map={"cuda:0": "cpu"})


def test_dry_run_says_what_is_where(path, tmp_path, capsys):
    words = words_for(path, slots_for(tmp_path), "--dry_run", "true")
    assert main(words) == 0
    *ram, card = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in ram] == ["weights", "cache", "working", "needed",
                                                 "available"]  # fmt: skip
    said = r"on the card: weights 0\.00 GiB, cache 0\.00 GiB; steps take what is left"
    assert re.fullmatch(r"cuda:0 +0\.00 GiB  " + said, card)
    assert main([*words, "--gpu", "off"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
