"""Models on a card (tests/support/card.py): against the CPU's decoder."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ktransformers import _core
from ktransformers.cuda_library import CudaLibrary
from ktransformers.errors import UserError
from ktransformers.optimize import card_steps, nvidia
from ktransformers.optimize.card_steps import MOST_ROWS
from ktransformers.runtime import card_layers, memory
from ktransformers.server.placement import placement_json
from tests.support import ours
from tests.support.card import (
    ALL,
    BUT_EXPERTS,
    INT4,
    LIBRARY,
    ON_CARD,
    divergence,
    emulated,
    load,
    needs_library,
    on_card_layers,
    rules_for,
    small,
    small_family,
)
from tests.support.deferral import Deferral
from tests.support.miniatures import write
from tests.support.reference import Reference

pytestmark = needs_library


@pytest.fixture(autouse=True)
def emulated_card(monkeypatch):
    yield from emulated(monkeypatch)


@pytest.mark.parametrize(
    ("name", "architecture", "operators", "changes"),
    [
        ("deepseek_v3", "deepseek_v3", BUT_EXPERTS, {}),
        # Compression of queries, and kv_b, as the older models have them; all experts on the card.
        ("deepseek_v2_lite", "deepseek_v2", ALL, {}),
        # Some experts in slots, the others on the CPU; norms per head.
        ("qwen3moe", "qwen3_moe", ALL,
         {"moe.experts": "backend: cuda, device: 'cuda:0', options: {experts: 5}"}),
        # Biases, and a gate on the shared expert.
        ("qwen2moe", "qwen2_moe", BUT_EXPERTS, {}),
        # The whole feed-forward part on the CPU.
        ("llama", "llama", BUT_EXPERTS, {"mlp.swiglu": "backend: cpu"}),
    ],
)  # fmt: skip
def test_a_model_on_the_card_says_what_it_says_on_the_cpu(
    tmp_path, name, architecture, operators, changes
):
    path = write(small(name), tmp_path / "model.gguf")
    rules = rules_for(architecture, operators, tmp_path, **changes)
    if name == "llama":  # an MLP is on the CPU where its products are
        text = Path(rules).read_text("utf-8")
        linear = "- match: {name: 'mlp', class: torch.nn.Linear}\n"
        linear += "  replace: {operator: linear, backend: cpu}\n  why: with the MLP\n\n"
        Path(rules).write_text(linear + text, "utf-8")
    ids = [5, 9, 2, 7]
    expected = ours.logits(load(path), ids, prompt=3)
    model = load(path, rules)
    (node,) = model.kt.decoder.nodes
    assert node == ("model.layers.0-1", "card_layers", "cuda:0")
    assert model.kt.plan.device_bytes()["cuda:0"] > 0
    got = ours.logits(model, ids, prompt=3)
    assert divergence(expected, got) <= 1e-3
    assert np.abs(expected - got).max() > 0  # it was not the CPU


# ---- several sequences, placement, refusals: on one small model ----


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(a small model on the CPU, the same on the card with some of its experts, its file)."""
    folder = tmp_path_factory.mktemp("both")
    path = write(small("qwen3moe"), folder / "model.gguf")
    slots = "backend: cuda, device: 'cuda:0', options: {experts: 3}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KT_CUDA_LIBRARY", str(LIBRARY))
        nvidia.module_state.cache_clear()
        rules = rules_for("qwen3_moe", ALL, folder, **{"moe.experts": slots})
        yield load(path), load(path, rules), path
    nvidia.module_state.cache_clear()


class Sequences:
    """Sequences of one model by name, stepped together."""

    def __init__(self, model):
        self.model, self.named = model, {}

    def step(self, rows: list[tuple[str, int]], is_prompt: bool = False) -> np.ndarray:
        """rows: (sequence, token) -> logits of all of them."""
        kt = self.model.kt
        names = list(dict.fromkeys(name for name, _ in rows))
        for name in names:
            self.named.setdefault(name, kt.engine.kv.make_sequence())
        next_position = {name: self.named[name].length for name in names}
        position = []
        for name, _ in rows:
            position.append(next_position[name])
            next_position[name] += 1
        logits, _ = kt.decoder.step(
            np.array([token for _, token in rows], np.int32),
            np.array(position, np.int32),
            np.array([names.index(name) for name, _ in rows], np.int32),
            np.full(len(rows), is_prompt, np.uint8),
            [self.named[name] for name in names],
            np.arange(len(rows), dtype=np.int32)[::-1].copy(),
        )
        return logits

    def fork(self, name: str, copy: str) -> None:
        self.named[copy] = self.named[name].fork()


def test_sequences_come_share_pages_and_go(both):
    cpu, card, _ = both
    results = []
    for one in (Sequences(cpu), Sequences(card)):
        logits = [one.step([("a", 5), ("b", 9), ("a", 2), ("a", 7), ("b", 3)], True)]
        one.fork("b", "c")  # a page that both have, and the next row of either must copy
        logits.append(one.step([("c", 4), ("a", 8), ("b", 6)]))  # three rows of a batch of four
        logits.append(one.step([("b", 11), ("c", 12)]))
        one.named["a"].truncate(1)
        logits.append(one.step([("a", 1)]))
        results.append(np.concatenate(logits))
    assert divergence(*results) <= 1e-3


def test_a_prompt_longer_than_a_page_and_hidden_states(both):
    ids = np.arange(20, 90, dtype=np.int32)  # no choice of an expert is a near tie
    marks, zeros = np.ones(len(ids), np.uint8), np.zeros(len(ids), np.int32)
    results = []
    for model in both[:2]:
        sequence = [model.kt.engine.kv.make_sequence()]
        results.append(
            model.kt.decoder.step(
                ids, np.arange(len(ids), dtype=np.int32), zeros, marks, sequence,
                np.array([66, 69], np.int32), want_hidden=True,
            )
        )  # fmt: skip
    assert divergence(results[0][0], results[1][0]) <= 1e-3
    hidden, on_card = results[0][1], results[1][1]
    assert ((hidden - on_card) ** 2).sum() / (hidden**2).sum() <= 5e-5


@pytest.mark.parametrize("slots", ["backend: cpu", "backend: cuda, options: {experts: 3}"])
def test_long_prompts_bring_their_experts_to_the_card(both, tmp_path, monkeypatch, slots):
    monkeypatch.setattr(card_layers, "STREAM_FROM", 3)
    monkeypatch.setattr(card_layers, "STREAM_SLOTS", 2)  # of eight experts: several rounds
    rules = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": slots})
    model, ids = load(both[2], rules), [5, 9, 2, 7, 11]
    model.kt.decoder.set_timing(True)
    one = Sequences(model)
    got = [one.step([("a", token) for token in ids], True)]
    assert model.kt.decoder.phase_seconds["experts"] == 0  # the CPU had none of it
    got.append(one.step([("a", 3)]))  # and generated tokens have theirs computed there
    assert model.kt.decoder.phase_seconds["experts"] > 0
    other = Sequences(both[0])
    expected = [other.step([("a", token) for token in ids], True), other.step([("a", 3)])]
    assert divergence(np.concatenate(expected), np.concatenate(got)) <= 1e-3


@pytest.mark.parametrize(
    ("name", "architecture", "changes", "streams"),
    [
        ("deepseek_v3", "deepseek_v3", {"moe.experts": "backend: cpu"}, False),
        ("deepseek_v3", "deepseek_v3", {"moe.experts": "backend: cpu"}, True),
        ("deepseek_v2_lite", "deepseek_v2", {}, False),  # all experts on the card
        ("qwen2moe", "qwen2_moe", {"moe.experts": "backend: cuda, options: {experts: 3}"}, False),
        ("qwen2moe", "qwen2_moe", {"moe.experts": "backend: cuda, options: {experts: 3}"}, True),
        # In slots in int4, and as they are on their way through the ring.
        ("qwen2moe", "qwen2_moe",
         {"moe.experts": "backend: cuda, options: {experts: 3, quant: int4}"}, True),
    ],
)  # fmt: skip
def test_long_prompts_dequantise(tmp_path, monkeypatch, name, architecture, changes, streams):
    path = write(small(name), tmp_path / "model.gguf")
    ids = [5, 9, 2, 7, 11, 4, 8, 6, 13, 3, 12]  # no choice of an expert is a near tie
    few = Sequences(load(path))
    expected = few.step([("a", token) for token in ids], True)
    # A prompt of one row is long, and a part of a matrix is all there is room for.
    monkeypatch.setattr(card_layers, "DENSE", {"dense_rows": 1, "dense_bytes": 1 << 16})
    if streams:
        monkeypatch.setattr(card_layers, "STREAM_FROM", 3)
        monkeypatch.setattr(card_layers, "STREAM_SLOTS", 2)
        monkeypatch.setattr(card_layers, "SLICE", 4)  # of eleven rows
    rules = rules_for(architecture, ALL, tmp_path, **changes)
    one = Sequences(load(path, rules))
    rows = [("a", token) for token in ids]
    assert divergence(expected, one.step(rows, True)) <= 1e-3
    assert divergence(few.step([("a", 3)]), one.step([("a", 3)])) <= 1e-3


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("", r"cuda:0: ([\d.]+ MiB) of \1 of experts pinned in \d+\.\d s"),
        (
            "500k",
            r"cuda:0: \d[\d.]+ KiB of [\d.]+ MiB of experts pinned in .*\(KT_PIN_LIMIT allows no ",
        ),
        (
            "0",
            r"cuda:0: 0 B of [\d.]+ MiB of experts pinned \(KT_PIN_LIMIT .*copy the others",
        ),
    ],
)
def test_experts_that_come_to_the_card_are_pinned(both, tmp_path, monkeypatch, limit, said):
    """All of them, some, none: the rest is staged, and the answer is the same."""
    monkeypatch.setenv("KT_PIN_LIMIT", limit)
    monkeypatch.setattr(card_layers, "STREAM_FROM", 3)
    monkeypatch.setattr(card_layers, "STREAM_SLOTS", 2)
    rules = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": "backend: cpu"})
    model = load(both[2], rules)
    assert re.search(said, model.kt.describe()), model.kt.describe()
    model.kt.decoder.set_timing(True)
    expected, got = (
        Sequences(one).step([("a", token) for token in (5, 9, 2, 7, 11)], True)
        for one in (both[0], model)
    )
    assert model.kt.decoder.phase_seconds["experts"] == 0
    assert divergence(expected, got) <= 1e-3
    with monkeypatch.context() as patch, pytest.raises(UserError, match="KT_PIN_LIMIT=some: write"):
        patch.setenv("KT_PIN_LIMIT", "some")
        load(both[2], rules)


def test_a_limit_of_pinned_memory_is_for_all_runs_of_layers(tmp_path, monkeypatch):
    """Two runs around a layer of the CPU."""
    path = write(small("qwen3moe", num_hidden_layers=3), tmp_path / "model.gguf")
    rules = on_card_layers("[02]", tmp_path)
    monkeypatch.setattr(card_layers, "STREAM_SLOTS", 2)
    line = re.compile(r"([\d.]+) (B|KiB|MiB) of ([\d.]+) (KiB|MiB) of experts pinned")
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}

    def pinned(limit: str) -> list[tuple[float, float]]:
        monkeypatch.setenv("KT_PIN_LIMIT", limit)
        found = [line.search(one) for one in load(path, rules).kt.pinned]
        return [(float(m[1]) * units[m[2]], float(m[3]) * units[m[4]]) for m in found]

    (first, asked), (second, _) = pinned("1G")
    assert first == second == asked
    limit = int(1.5 * asked)
    (first, _), (second, _) = pinned(str(limit))
    assert first == asked and 0 < second <= limit - 0.99 * asked
    assert [part for part, _ in pinned(str(int(0.9 * asked)))][1] < 0.2 * asked


def test_what_stays_in_the_file_is_not_pinned_and_says_so(both, tmp_path, monkeypatch):
    monkeypatch.setattr(card_layers, "STREAM_FROM", 3)
    monkeypatch.setattr(card_layers, "STREAM_SLOTS", 2)
    rules = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": "backend: cpu"})
    model = load(both[2], rules, in_place=True, weight_cache=tmp_path / "weights")
    (line,) = model.kt.pinned
    assert re.search(r" 0 B of .* pinned \(--in_place leaves them in the file; prompts", line), line
    assert "KT_PIN_LIMIT" not in line
    expected, got = (
        Sequences(one).step([("a", token) for token in (5, 9, 2, 7, 11)], True)
        for one in (both[0], model)
    )
    assert divergence(expected, got) <= 1e-3


@pytest.mark.parametrize("slots", ["backend: cpu", "backend: cuda, options: {experts: 3}"])
def test_a_long_prompt_brings_its_experts_once(both, tmp_path, monkeypatch, slots):
    """One step of the card in slices, of several sequences, against the CPU."""
    monkeypatch.setattr(card_layers, "DENSE", {"dense_rows": 1, "dense_bytes": 1 << 16})
    monkeypatch.setattr(card_layers, "STREAM_FROM", 7)
    monkeypatch.setattr(card_layers, "STREAM_SLOTS", 2)
    monkeypatch.setattr(card_layers, "SLICE", 4)
    rules = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": slots})
    model = load(both[2], rules)
    assert model.kt.chunk_size == min(MOST_ROWS, 64 * model.kt.engine.kv.page_limit)
    model.kt.decoder.set_timing(True)
    tokens = [5, 9, 2, 7, 11, 4, 8, 6, 13, 3, 12]
    rows = [("a", token) for token in tokens] + [("b", 9), ("b", 2), ("c", 7)]
    results = []
    for one in (Sequences(both[0]), Sequences(model)):
        logits = [one.step(rows, True)]
        if one.model is model:  # the CPU had none of it
            assert model.kt.decoder.phase_seconds["experts"] == 0
        logits.append(one.step([("b", 3), ("b", 8), ("a", 1), ("a", 2), ("a", 3)], True))
        logits.append(one.step([("c", 4), ("a", 8), ("b", 6)]))
        results.append(np.concatenate(logits))
    assert model.kt.decoder.phase_seconds["experts"] > 0  # of five rows and of three
    assert divergence(*results) <= 1e-3


def test_steps_are_as_long_as_the_card_has_room_for(both, tmp_path, monkeypatch):
    monkeypatch.setattr(card_layers, "DENSE", {"dense_rows": 1})
    monkeypatch.setattr(card_layers, "SLICE", 64)
    rules = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": "backend: cpu"})
    roomy = load(both[2], rules).kt
    needed = roomy.engine.card("cuda:0").bytes_taken
    monkeypatch.setenv("KT_VRAM_LIMIT", str(needed - 100_000))
    tight = load(both[2], rules).kt
    assert tight.engine.card("cuda:0").bytes_taken <= needed - 100_000
    assert tight.chunk_size < roomy.chunk_size == 64 * roomy.engine.kv.page_limit


def test_only_rows_that_steps_will_have_take_memory(both, tmp_path, monkeypatch):
    """8192 of a prompt where all layers are on the card, fewer beside layers of the CPU, and as
    many as somebody says."""
    monkeypatch.setattr(card_layers, "DENSE", {"dense_rows": 1})
    all_there = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": "backend: cpu"})
    kt = load(both[2], all_there).kt
    roomy, told = kt.engine.card("cuda:0").bytes_taken, load(both[2], all_there, chunk_size=600).kt
    assert kt.chunk_size == MOST_ROWS and told.chunk_size == 600
    per_row = 3 * 4 * both[0].config.hidden_size
    assert told.engine.card("cuda:0").bytes_taken < roomy - (MOST_ROWS - 608) * per_row
    rules = on_card_layers("1", tmp_path)
    partly = load(both[2], rules).kt
    assert partly.chunk_size == load(both[2]).kt.chunk_size
    as_asked = load(both[2], rules, chunk_size=partly.chunk_size).kt
    assert partly.engine.card("cuda:0").bytes_taken == as_asked.engine.card("cuda:0").bytes_taken


@pytest.mark.parametrize(
    ("layers", "limit", "options"),
    [
        (None, "", {}),
        ("1", "", {}),
        (None, "0", {"defer_experts": 1}),
        (None, "", {"chunk_size": 9000, "cache_lens": 12288}),
    ],
)
def test_what_steps_take_of_ram_is_foretold(both, tmp_path, monkeypatch, layers, limit, options):
    monkeypatch.setattr(card_layers, "DENSE", {"dense_rows": 1})
    staging = CudaLibrary(LIBRARY).value("staging_bytes")
    if ON_CARD:  # what planning counts on
        assert staging == card_steps.STAGING
    monkeypatch.setattr(card_steps, "STAGING", staging)  # emulated cards have a small one
    monkeypatch.setenv("KT_PIN_LIMIT", limit)
    seen = []
    check = memory.check_fits
    monkeypatch.setattr(
        memory, "check_fits", lambda plan, path: seen.append(plan) or check(plan, path)
    )
    rules = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": "backend: cpu"})
    kt = load(both[2], on_card_layers(layers, tmp_path) if layers else rules, **options).kt
    rows, config = max(card_layers.SLICE, kt.chunk_size), both[0].config
    own = rows * (4 * config.hidden_size + 16 * config.num_hidden_layers)  # the decoder's
    taken = kt.engine.card("cuda:0").bytes_in_ram + own
    assert taken <= seen[0].cards <= 1.1 * taken
    assert seen[0].needed == seen[0].weights + seen[0].cache + seen[0].cards + memory.WORKING_BYTES
    load(both[2])
    assert seen[1].cards == 0


def test_a_long_step_on_the_cpu_is_cut(both, tmp_path, monkeypatch):
    monkeypatch.setattr(card_layers, "STREAM_FROM", 1000)
    monkeypatch.setattr(card_layers, "SLICE", 4)
    monkeypatch.setattr(card_layers, "DENSE", {"dense_rows": 1})
    rules = rules_for("qwen3_moe", ALL, tmp_path, **{"moe.experts": "backend: cpu"})
    model = load(both[2], rules)
    assert model.kt.chunk_size > 4
    rows = [("a", token) for token in (5, 9, 2, 7, 11)] + [("b", 9), ("b", 2), ("c", 7)]
    expected, got = (Sequences(one).step(rows, True) for one in (both[0], model))
    assert divergence(expected, got) <= 1e-3


def test_generation_runs_in_the_core(both):
    before = both[1].kt.decoder.tokens_sampled
    answers = [ours.greedy(model, [5, 9, 2], 3, None) for model in both[:2]]
    assert answers[0] == answers[1] and len(answers[0]) == 3
    assert (
        both[1].kt.decoder.tokens_sampled == before + 3 and both[0].kt.decoder.tokens_sampled == 0
    )


def sampled(model, prompts, **changes) -> list[list[int]]:
    """Three tokens of each prompt, drawn with a seed of its own, all streams in one step."""
    streams = []
    for seed, prompt in enumerate(prompts):
        options = _core.StreamOptions()
        options.sampling.greedy = seed == 2
        options.sampling.temperature, options.sampling.seed = 1.5, seed
        options.sampling.top_k, options.sampling.top_p, options.sampling.min_p = (
            [(0, 1, 0), (7, 0.9, 0.01), (0, 1, 0)][seed]
        )  # fmt: skip
        for name, value in changes.items():
            setattr(options, name, value)
        streams.append(_core.Stream(model.kt.engine.kv.make_sequence(), prompt, options))
    for _ in range(3):
        rows = [stream.pending for stream in streams]
        outcomes = _core.run_streams(model.kt.decoder, streams, rows)
        assert all(error is None for *_, error in outcomes)
    return [stream.tokens[len(prompt) :] for stream, prompt in zip(streams, prompts, strict=True)]


def test_the_card_chooses_tokens_as_the_host_does(both):
    _, card, _ = both
    prompts = [[5, 9, 2], [4, 8], [11, 3, 7]]
    before = card.kt.decoder.tokens_sampled
    chosen = sampled(card, prompts)
    assert card.kt.decoder.tokens_sampled == before + 9
    # What needs the logits gets them, and draws with the same random numbers.
    for changes in ({"top_logprobs": 0}, {"logit_bias": [(1, 0.0)]}, {"prompt_logprobs": 0}):
        assert sampled(card, prompts, **changes) == chosen, changes
    assert card.kt.decoder.tokens_sampled == before + 9 + 6  # prompt_logprobs: of prompts only
    assert len({tuple(tokens) for tokens in chosen}) == 3


def test_layers_on_both_sides_of_a_boundary(both, tmp_path):
    """The second layer on the card; the first, all norms and the head on the CPU."""
    cpu, _, path = both
    model = load(path, on_card_layers("1", tmp_path))
    assert [node[2] for node in model.kt.decoder.nodes] == ["cpu", "cpu", "cuda:0"]
    ids = [5, 9, 2, 7]
    expected, got = (ours.logits(one, ids, prompt=3) for one in (cpu, model))
    assert divergence(expected, got) <= 1e-3


def test_runs_on_one_card_share_its_room(tmp_path, monkeypatch):
    """Two runs around a layer of the CPU: what the first can use is not the second's cache."""
    path = write(small("qwen3moe", num_hidden_layers=3), tmp_path / "model.gguf")
    rules = on_card_layers("[02]", tmp_path)
    monkeypatch.setattr(card_layers, "SLICE", 64)
    taken = {}
    for slots in (0, 4):
        monkeypatch.setattr(card_layers, "STREAM_SLOTS", slots)
        monkeypatch.setattr(card_layers, "DENSE", {"dense_rows": 1 if slots else 1000})
        taken[slots] = load(path, rules, cache_lens=1 << 15).kt.engine.card("cuda:0").bytes_taken
    limit = taken[0] + (taken[4] - taken[0]) // 8
    monkeypatch.setenv("KT_VRAM_LIMIT", str(limit))
    monkeypatch.setattr(card_layers, "STREAM_FROM", 3)
    model = load(path, rules, cache_lens=1 << 15)
    assert [node[2] for node in model.kt.decoder.nodes] == ["cuda:0", "cpu", "cpu", "cuda:0"]
    assert model.kt.engine.card("cuda:0").bytes_taken <= limit
    ids = [5, 9, 2, 7, 11]
    expected, got = (ours.logits(one, ids, prompt=4) for one in (load(path), model))
    assert divergence(expected, got) <= 1e-3


@pytest.mark.parametrize(
    ("name", "architecture", "layers", "defer", "slots", "prompt"),
    [
        ("deepseek_v3", "deepseek_v3", 3, 2, 0, [5, 9]),  # one dense layer; shared experts
        # What has a slot is never deferred, nor a prompt, be it as long as a decode step.
        ("qwen3moe", "qwen3_moe", 3, 2, 3, [5]),
    ],
)
def test_deferred_experts_are_added_by_the_next_layer(
    tmp_path, name, architecture, layers, defer, slots, prompt
):
    path = write(small(name, num_hidden_layers=layers), tmp_path / "model.gguf")
    where = f"backend: cuda, device: 'cuda:0', options: {{experts: {slots}}}"
    changes = {"moe.experts": where} if slots else {}
    rules = rules_for(architecture, ALL if slots else BUT_EXPERTS, tmp_path, **changes)
    reference = Reference.load(path, small_family(name, num_hidden_layers=layers)).model
    deferral = Deferral(reference, defer, lambda _layer, ids: ids >= slots)
    tokens = [7, 4]
    expected = {}
    for on in (False, True):
        deferral.on = False  # prompts are as ever
        with torch.no_grad():
            step = reference(input_ids=torch.tensor([prompt]), use_cache=True)
            deferral.on = on
            rows = [step.logits[0, -1:]]
            for token in tokens:
                step = reference(
                    input_ids=torch.tensor([[token]]), past_key_values=step.past_key_values
                )
                rows.append(step.logits[0])
        expected[on] = torch.cat(rows).numpy()
    model = load(path, rules, defer_experts=defer)
    got = ours.logits(model, prompt + tokens, prompt=len(prompt))[len(prompt) - 1 :]
    assert divergence(expected[True], got) <= 1e-3
    away = {on: ((logits - got)[1:] ** 2).sum() for on, logits in expected.items()}
    assert ((expected[True] - got)[0] ** 2).sum() < 0.01 * away[False]  # of the prompt
    assert away[True] < 0.01 * away[False]  # it is this sum and not the model's own
    assert any("--defer_experts" in note for note in model.kt.notes)


@pytest.mark.parametrize(
    ("defer", "rules", "told"),
    [
        (3, BUT_EXPERTS, "--defer_experts 3: 1 to 2 of its 3 experts per token can be deferred"),
        (2, ALL, "--defer_experts 2: no card has two layers in a row whose experts the CPU"),
        (2, None, "--defer_experts 2: no card has two layers in a row whose experts the CPU"),
    ],
)
def test_deferral_that_cannot_be_is_refused(both, tmp_path, defer, rules, told):
    rules = rules and rules_for("qwen3_moe", rules, tmp_path)
    with pytest.raises(UserError, match=told):
        load(both[2], rules, defer_experts=defer)


def test_an_fp8_cache_takes_less_and_says_nearly_the_same(both, tmp_path):
    cpu, card, path = both
    rules = rules_for("qwen3_moe", ALL, tmp_path)
    model = load(path, rules, kv_type="fp8")
    taken = {
        kind: load(path, rules, kv_type=kind).kt.engine.card("cuda:0").bytes_taken
        for kind in ("f16", "fp8")
    }
    config, positions = cpu.config, model.kt.engine.kv.page_limit * 64 + 64  # a page for padding
    heads, width = config.num_key_value_heads, config.head_dim
    each = config.num_hidden_layers * heads  # values only
    assert taken["f16"] - taken["fp8"] == each * positions * (2 * width - (width + 1))
    # Bytes stand beside the type that they are of: here no layer is the CPU's.
    assert "cache f32 0 B a position" in model.kt.describe()
    assert model.kt.describe().endswith(", fp8 on cards")
    types = [placement_json(SimpleNamespace(model=one))["totals"]["card_cache_type"]
             for one in (cpu, card, model)]  # fmt: skip
    assert types == [None, "f16", "fp8"]
    rows = [("a", token) for token in np.arange(20, 90)]
    steps = [rows, [("a", 5), ("b", 9)], [("b", 3)]]
    logits = []
    for one in (card, model):
        each = Sequences(one)
        found = [each.step(step, step is rows) for step in steps]
        each.fork("b", "c")  # exponents are copied with their pages
        found.append(each.step([("c", 4), ("b", 7)]))
        logits.append(np.concatenate(found))
    assert 0 < divergence(*logits) <= 0.05
    with pytest.raises(UserError, match="kv_type='fp8' is for the cache of layers on a card"):
        load(path, kv_type="fp8")


def test_an_fp8_cache_of_latents_keeps_their_rotated_part(tmp_path):
    path = write(small("deepseek_v3"), tmp_path / "model.gguf")
    rules = rules_for("deepseek_v3", BUT_EXPERTS, tmp_path)
    ids = list(np.arange(3, 11))
    plain, fp8 = (
        ours.logits(load(path, rules, kv_type=kind), ids, prompt=7) for kind in ("f16", "fp8")
    )
    assert 0 < divergence(plain, fp8) <= 0.05


def test_no_room_is_one_line_with_bytes_and_rule(both, tmp_path, monkeypatch):
    rules = rules_for("qwen3_moe", ALL, tmp_path)
    monkeypatch.setenv("KT_VRAM_LIMIT", "300k")
    said = r"rules\.yaml:\d+:\d+: model\.layers\.\d\.\S+: cuda:0: no room on the GPU for \d+ bytes"
    with pytest.raises(UserError, match=said) as error:
        load(both[2], rules)
    assert "\n" not in str(error.value) and "of 307200 are taken" in str(error.value)
    monkeypatch.setenv("KT_VRAM_LIMIT", "3M")  # the weights have room, the steps have not
    with pytest.raises(UserError, match=r"model\.layers\.0-1: cuda:0: no room .*--cache_lens"):
        load(both[2], rules)


def test_rules_that_cut_a_layer_up_are_refused(both, tmp_path):
    path = both[2]
    rules = rules_for("qwen3_moe", "(linear)", tmp_path)
    with pytest.raises(UserError, match=r"is on cuda:0, but .*self_attn is not"):
        load(path, rules)
    rules = rules_for("qwen3_moe", BUT_EXPERTS, tmp_path)
    with pytest.raises(UserError, match="lowered is False; --device-map cuda:0=cpu"):
        load(path, rules, lowered=False)
    assert load(path, rules, gpu="off").kt.decoder.nodes[0][2] == "cpu"
    assert load(path, rules, device_map={"cuda:0": "cpu"}).kt.decoder.nodes[0][2] == "cpu"


def test_linears_in_int4_say_what_their_codes_say(both, tmp_path):
    """Q4_K keeps its codes, so the CPU's model is the reference: prompts, steps, the head."""
    cpu, _, path = both
    rules = rules_for("qwen3_moe", ALL, tmp_path, linear=INT4)
    model = load(path, rules)
    assert "their codes are the file's" in "".join(model.kt.notes)
    row = model.kt.plan.row("model.layers.0.self_attn.o_proj")
    assert row.how == {"weights": "int4g32"}
    shown = {one["module"]: one for one in placement_json(SimpleNamespace(model=model))["rows"]}
    assert shown[row.module]["formats"] == ["int4g32"] and shown["lm_head"]["bytes"] > 0
    saved = sum(row.smaller for row in model.kt.plan.rows)
    assert saved < 0  # 4.5 bits became 5
    ids = np.arange(20, 90)  # more rows than a tile, and a page
    results = []
    for one in (Sequences(cpu), Sequences(model)):
        logits = [one.step([("a", token) for token in ids], True)]
        logits.append(one.step([("a", 5), ("b", 9), ("b", 2)], True))
        logits.append(one.step([("a", 4), ("b", 8)]))
        results.append(np.concatenate(logits))
    assert 0 < divergence(*results) <= 1e-3


@pytest.mark.parametrize("dense", [{}, {"dense_rows": 1, "dense_bytes": 1 << 16}])
def test_int4_of_some_linears_and_long_prompts(both, tmp_path, monkeypatch, dense):
    """Beside others that read the same input; with products that dequantise a part at a time."""
    monkeypatch.setattr(card_layers, "DENSE", dense)
    rules = rules_for("qwen3_moe", ALL, tmp_path)
    own = "- match: {name: 'q_proj|o_proj'}\n  replace: {operator: linear, " + INT4 + "}\n"
    text = Path(rules).read_text("utf-8")
    Path(rules).write_text(own + "  why: these\n\n" + text, "utf-8")
    rows = [("a", token) for token in range(20, 31)]
    expected, got = (Sequences(one).step(rows, True) for one in (both[0], load(both[2], rules)))
    assert divergence(expected, got) <= 1e-3


def test_int4_takes_the_bytes_that_the_plan_says(both, tmp_path):
    taken, planned = {}, {}
    for quant in ("file", "int4", "int4g64", "int4g128"):
        options = f"backend: cuda, device: 'cuda:0', options: {{quant: {quant}}}"
        model = load(both[2], rules_for("qwen3_moe", ALL, tmp_path, linear=options))
        taken[quant] = model.kt.engine.card("cuda:0").bytes_taken
        planned[quant] = model.kt.plan.device_bytes()["cuda:0"]
        if quant == "int4g64":
            assert re.search(r"again costs [\d.]+ % of their rms \(NMSE", "".join(model.kt.notes))
    for quant in ("int4g64", "int4g128"):  # what all three take beside weights is the same
        assert taken[quant] - taken["int4"] == planned[quant] - planned["int4"]


def experts_in(quant: str, count: int | None = None) -> dict[str, str]:
    some = f"experts: {count}, " if count else ""
    return {"moe.experts": f"backend: cuda, device: 'cuda:0', options: {{{some}quant: {quant}}}"}


@pytest.mark.parametrize(
    ("types", "count", "form"),
    [("Q4_K", 5, "int4g32"), ("Q4_0", None, "int4g32"), ("Q4_0", 3, "int4g32")],
)
def test_experts_in_int4_say_what_their_codes_say(tmp_path, types, count, form):
    """Those in slots are, the others as the file has them: prompts of several entries an expert,
    steps of graphs."""
    path = write(small("qwen3moe", types), tmp_path / "model.gguf")
    rules = rules_for("qwen3_moe", ALL, tmp_path, **experts_in("int4", count))
    cpu, model = load(path), load(path, rules)
    assert "their codes are the file's" in "".join(model.kt.notes)
    row = model.kt.plan.row("model.layers.1.mlp.experts")
    assert row.how == {"weights": form} and (row.on_cpu > 0) == (count is not None)
    shown = {one["module"]: one for one in placement_json(SimpleNamespace(model=model))["rows"]}
    kept = [types.lower()] if count else []
    assert shown[row.module]["formats"] == [form, *kept]
    ids = np.arange(20, 90)
    results = []
    for one in (Sequences(cpu), Sequences(model)):
        logits = [one.step([("a", token) for token in ids], True)]
        logits.append(one.step([("a", 5), ("b", 9), ("b", 2)], True))
        logits.append(one.step([("a", 4), ("b", 8)]))
        results.append(np.concatenate(logits))
    assert 0 < divergence(*results) <= 1e-3


def test_experts_in_int4_take_the_bytes_that_the_plan_says(both, tmp_path):
    taken, planned = {}, {}
    for quant in ("int4", "int4g64", "int4g128"):
        model = load(both[2], rules_for("qwen3_moe", ALL, tmp_path, **experts_in(quant, 3)))
        taken[quant] = model.kt.engine.card("cuda:0").bytes_taken
        planned[quant] = model.kt.plan.device_bytes()["cuda:0"]
        experts = model.kt.plan.row("model.layers.0.mlp.experts")
        # Those on the CPU are not touched.
        kept = both[1].kt.plan.row("model.layers.0.mlp.experts")
        assert experts.on_cpu == kept.on_cpu and experts.nbytes + experts.smaller == kept.nbytes
        if quant == "int4g64":
            notes = "".join(model.kt.notes)
            assert re.search(
                r"int4 on cards: 18 matrices.* again costs [\d.]+ % of their rms", notes
            )
    for quant in ("int4g64", "int4g128"):  # what all three take beside weights is the same
        assert taken[quant] - taken["int4"] == planned[quant] - planned["int4"] < 0


def test_experts_in_int4_of_a_shape_that_does_not_fit_are_refused(tmp_path):
    path = write(small("qwen3moe", "Q8_0", moe_intermediate_size=96), tmp_path / "model.gguf")
    rules = rules_for("qwen3_moe", ALL, tmp_path, **experts_in("int4", 3))
    told = r"rules\.yaml:\d+:\d+: model\.layers\.0\.mlp\.experts: int4 needs in_features that"
    with pytest.raises(UserError, match=told + " are a multiple of 64, not 96") as error:
        load(path, rules)
    assert "\n" not in str(error.value)
    assert load(path, rules, gpu="off").kt.engine.int4.matrices == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"linear": "backend: cpu, options: {quant: int4}"},
         r"rules\.yaml:\d+:\d+: option quant: int4 is for operators linear and moe\.experts with "
         "backend: cuda"),
        ({"moe.experts": "backend: cpu, options: {quant: int4g64}"},
         r"option quant: int4g64 is for operators linear and moe\.experts with backend: cuda"),
        ({"embedding": "backend: cuda, options: {quant: int4g32}"},
         r"option quant: int4g32 is for operators linear and moe\.experts with backend: cuda"),
    ],
)  # fmt: skip
def test_int4_that_cannot_be_is_refused(both, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        load(both[2], rules_for("qwen3_moe", ALL, tmp_path, **changes))


def test_int4_of_a_shape_that_does_not_fit_is_refused(tmp_path):
    path = write(small("llama", "Q8_0", intermediate_size=288), tmp_path / "model.gguf")
    rules = rules_for("llama", ALL, tmp_path, linear=INT4)
    told = r"rules\.yaml:\d+:\d+: model\.layers\.0\.mlp\.down_proj: int4 needs in_features that"
    with pytest.raises(UserError, match=told + " are a multiple of 64, not 288") as error:
        load(path, rules)
    assert "\n" not in str(error.value)
    assert load(path, rules, gpu="off").kt.engine.int4.matrices == 0


UPSTREAM = r"""
- match: {name: "^model\\.layers\\..*$", class: torch.nn.Linear}
  replace:
    class: ktransformers.operators.linear.KTransformersLinear
    kwargs: {generate_device: "cuda", prefill_device: "cuda", generate_op: "KLinearMarlin",
             prefill_op: "KLinearTorch"}
- match: {name: "^model\\.layers\\..*\\.mlp$",
          class: ktransformers.models.modeling_deepseek.DeepseekV2MoE}
  replace:
    class: ktransformers.operators.experts.KDeepseekV2MoE
    kwargs: {generate_device: "cuda", prefill_device: "cuda"}
- match: {name: "^model\\.layers\\..*\\.mlp\\.experts$"}
  replace:
    class: ktransformers.operators.experts.KTransformersExperts
    kwargs: {prefill_device: "cuda", prefill_op: "KExpertsTorch", generate_device: "cpu",
             generate_op: "KExpertsCPU", out_device: "cuda"}
  recursive: False
- match: {name: "^model\\.layers\\..*\\.self_attn$"}
  replace:
    class: ktransformers.operators.attention.KDeepseekV2Attention
    kwargs: {generate_device: "cuda", prefill_device: "cuda"}
- match: {name: "^model$"}
  replace:
    class: ktransformers.operators.models.KDeepseekV2Model
"""


@pytest.mark.parametrize(("types", "form"), [("Q4_K", "int4g32"), ("Q6_K", None)])
def test_upstreams_experts_on_the_card_keep_codes_or_the_files_type(tmp_path, types, form):
    path = write(small("deepseek_v2", types, num_attention_heads=2), tmp_path / "model.gguf")
    rules = tmp_path / "upstream.yaml"
    there = 'generate_device: "cuda",\n             generate_op: "KExpertsMarlin"'
    here = 'generate_device: "cpu",\n             generate_op: "KExpertsCPU"'
    assert here in UPSTREAM
    rules.write_text(UPSTREAM.replace(here, there), "utf-8")
    model = load(path, str(rules))
    experts = [row for row in model.kt.plan.rows if row.operator == "moe.experts"]
    assert experts and {row.device for row in experts} == {"cuda:0"}
    assert {row.how.get("weights") for row in experts} == {form}
    expected, got = (ours.logits(one, [5, 9], prompt=1) for one in (load(path), model))
    assert divergence(expected, got) <= 1e-3


def test_upstreams_names_mean_the_card_where_there_is_one(tmp_path, capsys):
    from ktransformers.cli import plan_command

    path = write(small("deepseek_v2", num_attention_heads=2), tmp_path / "model.gguf")
    rules = tmp_path / "upstream.yaml"
    rules.write_text(UPSTREAM, "utf-8")
    plan_command.run(str(path), optimize_config_path=str(rules))
    shown = capsys.readouterr().out
    assert re.search(r"self_attn\.q_a_proj.*linear\s+cuda:0.*int4g32", shown), shown
    expected, got = (
        ours.logits(load(path, one), [5, 9], prompt=1) for one in (None, str(rules))
    )  # fmt: skip
    assert divergence(expected, got) <= 1e-3
