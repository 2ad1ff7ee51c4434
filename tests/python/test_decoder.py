"""The decoder program: a row's logits belong to the row.

However a prompt is cut, whoever else is in the step, whatever the cache holds and however many
threads there are, the same tokens at the same positions give the same bits. These comparisons are
therefore exact; that they could fail at all is shown by test_arithmetics_differ_where_they_should.
"""

import random
import sys
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ktransformers import AutoModelForCausalLM, _core
from ktransformers.errors import UserError
from ktransformers.runtime.loading import row_kinds
from tests.support.miniatures import miniature, write

FOLDER = tempfile.TemporaryDirectory(prefix="kt-decoder-")
# Every kind of node: grouped-query with and without norms and biases, whole and split kv_b, dense,
# routed, shared with a gate, grouped sigmoid routing; blocks of 32 and of 256.
MODELS = {
    "llama": "Q4_1",
    "qwen2moe": "Q8_0",
    "qwen3moe": {"": "Q4_K", "ffn_down": "Q6_K"},
    "deepseek_v2_lite": "Q4_0",
    "deepseek_v3": "Q8_0",
    "deepseek_v3_whole": {"": "Q4_K", "attn_kv_b": "Q5_K"},
}
LONG = 2  # the mark of a long prompt's rows
PROMPT = [int(i) for i in np.random.default_rng(5).integers(3, 259, 150)]


@lru_cache
def load(name, activations="auto", threads=2, **options):
    path = Path(FOLDER.name) / f"{name}.gguf"
    if not path.exists():
        write(miniature(name, MODELS[name]), path)
    return AutoModelForCausalLM.from_pretrained(
        str(path), activations=activations, cpu_infer=threads, **options
    )


@dataclass
class Line:
    """A sequence, what was said in it, and the logits its rows gave."""

    model: object
    sequence: object = None
    tokens: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self):
        if self.sequence is None:
            self.sequence = self.model.kt.engine.kv.make_sequence()

    def fork(self):
        logits = list(self.logits)
        return Line(self.model, self.sequence.fork(), list(self.tokens), list(self.marks), logits)

    def truncate(self, length):
        self.sequence.truncate(length)
        for part in (self.tokens, self.marks, self.logits):
            del part[length:]

    def add(self, tokens, prompt=True, size=None):
        for start in range(0, len(tokens), size or len(tokens)):
            part = tokens[start : start + (size or len(tokens))]
            step([(self, token, prompt) for token in part])
        return self

    def array(self):
        return np.stack(self.logits)


def step(rows):
    """rows: (line, token, is_prompt) in any order; every row's logits are asked for and kept."""
    lines = list({id(line): line for line, _, _ in rows}.values())
    position, sequence, ends = [], [], {id(line): line.sequence.length for line in lines}
    for line, _, _ in rows:
        position.append(ends[id(line)])
        ends[id(line)] += 1
        sequence.append([id(one) for one in lines].index(id(line)))
    logits, _ = lines[0].model.kt.decoder.step(
        [token for _, token, _ in rows], position, sequence, [int(p) for _, _, p in rows],
        [line.sequence for line in lines], list(range(len(rows))),
    )  # fmt: skip
    assert np.isfinite(logits).all()
    for (line, token, prompt), row in zip(rows, logits, strict=True):
        line.tokens.append(token)
        line.marks.append(int(prompt))
        line.logits.append(row.copy())


def whole(line) -> np.ndarray:
    """The same tokens with the same marks, in one step of a new sequence."""
    again = Line(line.model)
    step([(again, t, m) for t, m in zip(line.tokens, line.marks, strict=True)])
    return again.array()


everywhere = pytest.mark.parametrize("activations", ["auto", "exact", "f32"])
every_model = pytest.mark.parametrize("name", MODELS)


@everywhere
@every_model
def test_a_prompt_may_be_cut_anywhere(name, activations):
    model = load(name, activations)
    expected = Line(model).add(PROMPT).array()
    for size in (1, 7, 64, 65, 100):
        assert np.array_equal(Line(model).add(PROMPT, size=size).array(), expected), size


@everywhere
@pytest.mark.parametrize("name", ["deepseek_v2_lite", "deepseek_v3", "deepseek_v3_whole"])
def test_latent_keys_of_a_long_prompt_are_expanded_however_it_is_cut(name, activations):
    model = load(name, activations)
    line = Line(model).add(PROMPT[:140], prompt=LONG).add(PROMPT[140:], prompt=False)
    assert np.array_equal(whole(line), line.array())
    for size in (1, 7, 100):
        cut = Line(model).add(PROMPT[:140], prompt=LONG, size=size)
        assert np.array_equal(cut.array(), line.array()[:140]), size
    expanded, absorbed = line.array()[:140], Line(model).add(PROMPT[:140]).array()
    # What is deterministic may not depend on how much of a prompt was cached.
    assert np.array_equal(expanded, absorbed) == (activations != "auto")
    floats = Line(load(name, "f32")).add(PROMPT[:140]).array()
    assert apart(expanded, floats) <= 1.2 * apart(absorbed, floats)


def apart(logits, expected) -> float:
    return float(np.square(logits - expected).sum() / np.square(expected).sum())


def test_rows_of_long_prompts_are_marked_by_what_comes_together():
    counted = np.repeat(np.int32([0, 1, 0]), [100, _core.LONG_PROMPT - 1, _core.LONG_PROMPT - 100])
    assert row_kinds(counted, True).tolist() == [2 if s == 0 else 1 for s in counted]
    assert not row_kinds(counted, False).any() and row_kinds(counted[:0], True).size == 0


@everywhere
@every_model
def test_a_step_of_many_gives_what_each_gives_alone(name, activations):
    """A prompt chunk beside decodes of others, the rows interleaved."""
    model = load(name, activations)
    old, short, new = Line(model).add(PROMPT), Line(model).add(PROMPT[:3]), Line(model)
    alone = [old.fork(), short.fork(), Line(model)]
    alone[0].add([9], prompt=False).add([8], prompt=False)
    alone[1].add([5], prompt=False)
    alone[2].add(PROMPT[40:120])
    rows = [(new, token, True) for token in PROMPT[40:120]]
    rows.insert(50, (short, 5, False))
    rows.insert(7, (old, 9, False))
    rows.append((old, 8, False))
    step(rows)
    for together, expected in zip((old, short, new), alone, strict=True):
        assert np.array_equal(together.array(), expected.array())


@everywhere
@every_model
def test_forks_and_truncated_sequences_go_on_like_new_ones(name, activations):
    model = load(name, activations)
    pages = model.kt.engine.kv.pages_in_use
    first = Line(model).add(PROMPT[:100])
    second = first.fork()
    second.add([7, 8], prompt=False)
    first.add(PROMPT[100:130]).add([4], prompt=False)
    third = second.fork()
    third.truncate(70)
    third.add(PROMPT[:20])
    second.truncate(101)
    second.add([11, 12], prompt=False)
    for line in (first, second, third):
        assert np.array_equal(line.array(), whole(line))
    assert first.array()[110:].any()
    del first, second, third, line
    assert model.kt.engine.kv.pages_in_use == pages


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek_v3"])
def test_a_random_day(name):
    """Prompts, decodes, forks and truncations of several sequences, mixed at random: in the end
    every sequence reads as if it had been alone."""
    model, dice, lines = load(name), random.Random(3), []
    for _ in range(60):
        kind = dice.random()
        if len(lines) < 2 or (kind < 0.1 and len(lines) < 7):
            lines.append(Line(model))
        elif kind < 0.2 and len(lines) < 7:
            lines.append(dice.choice(lines).fork())
        elif kind < 0.3:
            line = dice.choice(lines)
            line.truncate(dice.randint(0, len(line.tokens)))
        elif kind < 0.33:
            lines.pop(dice.randrange(len(lines)))
        rows = []
        for line in dice.sample(lines, dice.randint(1, len(lines))):
            prompt = dice.random() < 0.5 or not line.tokens
            count = dice.randint(1, 40) if prompt else 1
            rows += [(line, dice.randrange(3, 300), prompt) for _ in range(count)]
        # Any interleaving that keeps each sequence's rows in order.
        dice.shuffle(rows)
        step(rows)
    assert max(len(line.tokens) for line in lines) > 128
    for line in lines:
        if line.tokens:
            assert np.array_equal(line.array(), whole(line))


@every_model
def test_threads_change_no_bit(name):
    for activations in ("auto", "f32"):
        results = []
        for threads in (1, 2):
            line = Line(load(name, activations, threads)).add(PROMPT[:90], size=50)
            results.append(line.add([3], prompt=False).array())
        assert np.array_equal(*results)


@pytest.mark.parametrize("batch", [8, 32])
def test_a_batch_of_decodes(batch):
    model = load("qwen2moe")
    lines = [Line(model).add(PROMPT[i : 2 * i + 1]) for i in range(batch)]
    alone = [line.fork().add([i + 3], prompt=False).logits[-1] for i, line in enumerate(lines)]
    step([(line, i + 3, False) for i, line in enumerate(lines)])
    for line, expected in zip(lines, alone, strict=True):
        assert np.array_equal(line.logits[-1], expected)


@every_model
def test_arithmetics_differ_where_they_should(name):
    """By default the first 64 positions and generated tokens are near exact, other prompt rows
    are digits: bitwise equal to `exact` before position 64 and different from there on."""
    auto, exact, f32 = (
        Line(load(name, activations, kv_type="f16")).add(PROMPT).array()
        for activations in ("auto", "exact", "f32")
    )
    assert np.array_equal(auto[:64], exact[:64])
    assert all((a != e).any() for a, e in zip(auto[64:], exact[64:], strict=True))
    assert (exact != f32).any()
    auto, exact = (
        Line(load(name, activations, kv_type="f16")).add(PROMPT, prompt=False).array()
        for activations in ("auto", "exact")
    )
    assert np.array_equal(auto, exact)


@every_model
def test_hidden_states_and_chosen_rows(name):
    """The head of a row's hidden state gives its logits; rows come in the order asked for."""
    model, n = load(name), 70
    decoder, engine = model.kt.decoder, model.kt.engine
    arguments = (PROMPT[:n], np.arange(n), np.zeros(n), np.ones(n))
    every, hidden = decoder.step(*arguments, [engine.kv.make_sequence()], range(n), True)
    assert hidden.shape == (n, decoder.hidden_size) and every.shape == (n, decoder.vocab_size)
    head = model.lm_head.core.forward(engine.context, hidden, np.ones(n, np.uint8))
    assert np.array_equal(head, every)
    chosen = [69, 0, 12, 12]
    some, nothing = decoder.step(*arguments, [engine.kv.make_sequence()], chosen)
    assert nothing is None and np.array_equal(some, every[chosen])
    none, same = decoder.step(*arguments, [engine.kv.make_sequence()], [], True)
    assert none.shape == (0, decoder.vocab_size) and np.array_equal(same, hidden)


def test_a_full_cache_is_an_error_and_no_more():
    model = load("deepseek_v3", cache_lens=192)
    line = Line(model).add(PROMPT[:100])
    other = line.fork()
    for tokens in (PROMPT[:93], PROMPT * 2):
        with pytest.raises(ValueError, match="cache is full.*--cache_lens"):
            line.fork().add(tokens)
    assert model.kt.engine.kv.pages_in_use == 2
    line.add(PROMPT[100:128])  # 64 shared positions, and two pages of 64 of which one is left
    with pytest.raises(ValueError, match="cache is full"):
        step([(other, 1, True), (line, 1, True)])
    assert (other.sequence.length, line.sequence.length) == (100, 128)
    del other
    line.add(PROMPT[128:]).add([5], prompt=False)
    expected = line.array()
    line.truncate(0)
    fresh = Line(model).add(PROMPT).add([5], prompt=False)
    assert np.array_equal(fresh.array(), expected)
    with pytest.raises(UserError, match="cache"):
        model.generate(torch.tensor([PROMPT * 2]), max_new_tokens=1)


def test_bad_steps_are_refused_from_python():
    model = load("llama")
    line = Line(model).add(PROMPT[:5])
    decoder = model.kt.decoder
    good = dict(token=[3], position=[5], sequence=[0], is_prompt=[1], sequences=[line.sequence],
                logits_rows=[0])  # fmt: skip
    expected, _ = decoder.step(**good)
    line.truncate(5)
    for change, message in (
        (dict(token=[decoder.vocab_size]), "is outside the vocabulary"),
        (dict(token=[-1]), "token id -1"),
        (dict(token=[]), "no rows"),
        (dict(position=[4]), "position 4 of a sequence that goes on at 5"),
        (dict(position=[5, 6]), "1 tokens, 2 positions"),
        (dict(sequence=[1]), "sequence 1 of 1"),
        (dict(sequences=[]), "sequence 0 of 0"),
        (dict(sequences=[None]), "sequence 0 is none"),
        (dict(sequences=[line.sequence] * 2), "same one"),
        (dict(sequences=[load("qwen2moe").kt.engine.kv.make_sequence()]), "another model"),
        (dict(logits_rows=[1]), "logits of row 1 of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.step(**good | change)
        assert line.sequence.length == 5
    again, _ = decoder.step(**good)
    assert np.array_equal(again, expected)


def options(count, **settings):
    made = _core.GenerateOptions()
    made.max_new_tokens = count
    for key, value in settings.items():
        setattr(made, key, value)
    return made


def calls_during(function) -> int:
    """Python functions entered and built-in ones called, in this thread."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_generating_calls_no_python_per_token():
    model = load("deepseek_v3")
    decoder, kv = model.kt.decoder, model.kt.engine.kv

    def run(count, on_token=None, batch=3):
        sequences = [kv.make_sequence() for _ in range(batch)]
        result = decoder.generate(sequences, [PROMPT[:9]] * batch, options(count), on_token)
        assert [len(tokens) for tokens in result.tokens] == [count] * batch

    few, many = (calls_during(lambda n=n: run(n)) for n in (2, 120))
    assert few == many
    # The same counter sees a callback: three sequences, one call each per token.
    heard = [calls_during(lambda n=n: run(n, lambda s, t: True)) for n in (2, 120)]
    assert heard[1] - heard[0] == 3 * (120 - 2)


def test_generate_of_the_model_calls_no_python_per_token():
    model = load("qwen3moe")
    settings = dict(do_sample=False, eos_token_id=None, pad_token_id=0)

    def run(count):
        return model.generate(torch.tensor([PROMPT[:9]]), max_new_tokens=count, **settings)

    assert run(40).shape == (1, 49)
    few, many = (calls_during(lambda n=n: run(n)) for n in (10, 100))
    assert many - few < 20, (few, many)


def test_on_token_sees_every_token_and_ends_the_answer():
    model = load("qwen3moe")
    decoder, kv = model.kt.decoder, model.kt.engine.kv

    def run(on_token=None):
        result = decoder.generate([kv.make_sequence()], [PROMPT[:9]], options(30), on_token)
        return result.tokens[0]

    expected, heard = run(), []
    assert run(lambda s, token: heard.append((s, token)) or True) == expected
    assert heard == [(0, token) for token in expected]
    for end in (1, 2, 17):
        heard.clear()
        answer = run(lambda s, t, end=end: heard.append(t) or len(heard) < end)
        assert answer == heard == expected[:end]

    def fail(sequence, token):
        raise KeyError("from the callback")

    pages = kv.pages_in_use
    with pytest.raises(KeyError, match="from the callback"):
        run(fail)
    assert kv.pages_in_use == pages
    assert run() == expected


def test_sampling_in_a_batch_does_not_depend_on_the_batch():
    """Sequence s draws from a stream of its own, seeded with seed + s."""
    model = load("qwen2moe")
    decoder, kv = model.kt.decoder, model.kt.engine.kv
    sampling = _core.SamplingOptions()
    sampling.greedy, sampling.temperature, sampling.seed = False, 1.3, 40
    prompts = [PROMPT[i : i + 5 + i] for i in range(6)]
    together = decoder.generate(
        [kv.make_sequence() for _ in prompts], prompts, options(25, sampling=sampling)
    ).tokens
    for s, prompt in enumerate(prompts):
        sampling.seed = 40 + s
        alone = decoder.generate([kv.make_sequence()], [prompt], options(25, sampling=sampling))
        assert alone.tokens[0] == together[s]
    assert len({tuple(tokens) for tokens in together}) == len(prompts)
