"""generate(): its tokens against transformers' own, its settings, and which loop runs."""

import signal
import threading

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation import GenerationMixin

from ktransformers.errors import UserError
from tests.support import vocabulary
from tests.support.compare import NEAR_TIE
from tests.support.families import families
from tests.support.miniatures import miniature, write
from tests.support.pairs import left_padded, load, pair, path_of, reference_of

torch.set_num_threads(1)  # miniatures are too small to share

RANDOM = np.random.default_rng(11)
IDS = [int(i) for i in RANDOM.integers(3, vocabulary.SIZE, 150)]
PROMPTS = [IDS[:20], IDS[30:37], IDS[40:110]]
PROMPT = torch.tensor([IDS[:20]])
ONE = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}


@pytest.fixture
def model():
    return pair("qwen3moe").model


@pytest.fixture
def loops(monkeypatch):
    """Which loop each generate() took: "core" or "transformers"."""
    from ktransformers.runtime.generation import KtGenerationMixin

    taken = []

    def note(cls, name, label):
        original = getattr(cls, name)

        def wrapper(self, *args, **kwargs):
            taken.append(label)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, name, wrapper)

    note(KtGenerationMixin, "_core_loop", "core")
    note(GenerationMixin, "_sample", "transformers")
    return taken


def new_tokens(output, columns: int) -> list[list[int]]:
    return output[:, columns:].tolist()


def assert_same_greedy(ours: torch.Tensor, theirs, scores, columns: int) -> None:
    """Rows of tokens equal up to the first place where the reference is nearly undecided.

    theirs: transformers' sequences; scores: its logits per step, [batch, vocab] each.
    """
    gaps = torch.stack([step.topk(2).values.diff(dim=1)[:, 0].abs() for step in scores], dim=1)
    for own, other, gap in zip(ours[:, columns:], theirs[:, columns:], gaps, strict=True):
        undecided = torch.nonzero(gap <= NEAR_TIE).flatten().tolist()
        until = min([*undecided, len(other)])
        assert own[:until].tolist() == other[:until].tolist()
        assert until >= 3  # or next to nothing was compared


@pytest.mark.parametrize("lowered", [True, False])
@pytest.mark.parametrize("name", families())
def test_greedy_tokens_are_those_of_transformers(name, lowered, loops):
    model = pair(name).model if lowered else load(path_of(name), lowered=False)
    for prompts in (PROMPTS[:1], PROMPTS):
        batch = left_padded(prompts)
        theirs = reference_of(name).generate(
            **batch, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        loops.clear()
        ours = model.generate(
            **batch, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2
        )
        columns = batch["input_ids"].shape[1]
        assert ours.dtype == torch.int64
        assert torch.equal(ours[:, :columns], batch["input_ids"])
        assert_same_greedy(ours, theirs.sequences, theirs.scores, columns)
        assert loops == ["core" if lowered else "transformers"]


def test_settings_choose_the_loop(model, loops):
    """What the core can do, it does; any other setting goes through transformers' loop."""
    for settings, loop in (
        ({}, "core"),
        ({"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.1}, "core"),
        ({"repetition_penalty": 1.3}, "core"),
        ({"min_new_tokens": 3}, "core"),
        ({"min_length": 22}, "core"),
        ({"eos_token_id": [5, 6]}, "core"),
        ({"use_cache": False}, "core"),
        ({"cache_implementation": "static"}, "core"),
        ({"return_dict_in_generate": True}, "core"),
        ({"typical_p": 0.5, "do_sample": True}, "transformers"),
        ({"no_repeat_ngram_size": 2}, "transformers"),
        ({"bad_words_ids": [[4]]}, "transformers"),
        ({"sequence_bias": [[[4], 1.0]]}, "transformers"),
        ({"suppress_tokens": [4]}, "transformers"),
        ({"forced_eos_token_id": 7}, "transformers"),
        ({"output_scores": True, "return_dict_in_generate": True}, "transformers"),
        ({"max_time": 60.0}, "transformers"),
        ({"logits_processor": LogitsProcessorList([Forbid(5)])}, "transformers"),
        ({"stopping_criteria": StoppingCriteriaList([StopAt(2)])}, "transformers"),
    ):
        loops.clear()
        model.generate(**ONE, **{"max_new_tokens": 4} | settings)
        assert loops == [loop], settings


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"min_new_tokens": 6, "eos_token_id": list(range(3, 200))},
        {"min_length": 25, "eos_token_id": list(range(3, 200))},
        {"max_length": 27},
        {"eos_token_id": list(range(3, 160)), "max_new_tokens": 12},
        {"no_repeat_ngram_size": 1},
        {"bad_words_ids": [[i] for i in range(3, 160)]},
        {"use_cache": False},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_greedy_settings_mean_what_they_mean_in_transformers(settings):
    both = pair("qwen3moe")
    batch = left_padded(PROMPTS[:2])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | settings
    if "max_length" in settings:
        del settings["max_new_tokens"]
    theirs = both.reference.generate(
        **batch, **settings, return_dict_in_generate=True, output_scores=True
    )
    ours = both.model.generate(**batch, **settings)
    assert ours.shape == theirs.sequences.shape
    for step in theirs.scores:  # this seed has no near tie: all must be equal
        assert (step.topk(2).values.diff(dim=1).abs() > NEAR_TIE).all()
    assert torch.equal(ours, theirs.sequences)


def test_sampling_repeats_with_the_seed_and_differs_without(model):
    def sample(**settings):
        return model.generate(
            **ONE, **{"top_k": 0} | settings, max_new_tokens=12, do_sample=True, eos_token_id=None
        )[0].tolist()

    torch.manual_seed(3)
    first, second = sample(), sample()
    torch.manual_seed(3)
    assert sample() == first and first != second
    assert sample(temperature=1e-4) == sample(top_k=1)  # both leave the best token only


def test_sampled_tokens_follow_the_models_distribution():
    """2,000 draws of one token against the softmax of transformers' logits."""
    model = load(path_of("qwen3moe"), cache_lens=64 * 2000)
    torch.manual_seed(1)
    count = 2000
    drawn = model.generate(
        **ONE, max_new_tokens=1, do_sample=True, temperature=0.8, top_k=5,
        num_return_sequences=count,
    )[:, -1]  # fmt: skip
    with torch.no_grad():
        logits = reference_of("qwen3moe")(input_ids=PROMPT).logits[0, -1] / 0.8
    best = logits.topk(5)
    expected = best.values.softmax(0).double()
    seen = torch.stack([(drawn == token).sum() for token in best.indices]).double()
    assert int(seen.sum()) == count
    chi2 = float(((seen - count * expected) ** 2 / (count * expected)).sum())
    assert chi2 < 25  # four degrees of freedom: 1 in 20,000 by chance, and the seed is fixed


def test_num_return_sequences(model):
    torch.manual_seed(0)
    batch = left_padded(PROMPTS[:2])
    settings = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3}
    out = model.generate(**batch, **settings, top_k=0)
    assert out.shape[0] == 6
    assert torch.equal(out[:, :20], batch["input_ids"].repeat_interleave(3, 0))
    assert len({tuple(row) for row in out[:3].tolist()}) > 1
    assert model.kt.last_stats.prompt_tokens == 6  # each prompt was evaluated once, before
    plain = model.generate(**batch, max_new_tokens=6, do_sample=False)
    same = model.generate(**batch, **settings, top_k=1)
    assert torch.equal(same, plain.repeat_interleave(3, 0))
    same = model.generate(**batch, **settings, top_k=1, repetition_penalty=1.00001)
    assert torch.equal(same, plain.repeat_interleave(3, 0))
    assert model.kt.last_stats.prompt_tokens == 3 * 27


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}])
def test_padding_on_the_right_changes_no_answer(model, settings):
    settings = settings | {"max_new_tokens": 5, "eos_token_id": None}
    ids = torch.tensor([PROMPTS[1] + [0] * 13, PROMPTS[0]])
    mask = torch.tensor([[1] * 7 + [0] * 13, [1] * 20])
    ours = new_tokens(model.generate(ids, attention_mask=mask, **settings), 20)
    for prompt, answer in zip((PROMPTS[1], PROMPTS[0]), ours, strict=True):
        alone = model.generate(torch.tensor([prompt]), **settings)
        assert answer == new_tokens(alone, len(prompt))[0]


def test_a_finished_row_is_padded(model):
    batch = left_padded(PROMPTS)
    free = new_tokens(model.generate(**batch, max_new_tokens=8, eos_token_id=None), 70)
    stop = free[1][2]  # ends the second row after three tokens
    out = new_tokens(
        model.generate(**batch, max_new_tokens=8, eos_token_id=stop, pad_token_id=1), 70
    )
    for plain, stopped in zip(free, out, strict=True):
        end = plain.index(stop) + 1 if stop in plain else 8
        assert stopped == (plain[:end] + [1] * 8)[: len(stopped)]
    assert out[1][:4] == [*free[1][:3], 1]


def test_generation_config_objects_and_the_models_own(model):
    plain = model.generate(**ONE, max_new_tokens=6, do_sample=False).tolist()
    config = GenerationConfig(max_new_tokens=6, do_sample=False)
    assert model.generate(**ONE, generation_config=config).tolist() == plain
    assert config.eos_token_id is None  # the caller's object is left alone
    own = model.generation_config
    assert own.eos_token_id and own.pad_token_id is not None
    own.max_new_tokens = 2
    try:
        assert model.generate(**ONE).shape[1] == 22
        assert model.generate(**ONE, generation_config=config).tolist() == plain
    finally:
        own.max_new_tokens = None


def test_recommended_sampling_of_a_file_is_the_default(tmp_path, capfd):
    recommending = miniature("llama")
    recommending.metadata |= {"general.sampling.temp": 0.7, "general.sampling.top_k": 5}
    model = load(write(recommending, tmp_path / "model.gguf"))
    own = model.generation_config
    assert own.do_sample and own.temperature == pytest.approx(0.7) and own.top_k == 5
    torch.manual_seed(0)
    drawn = {tuple(model.generate(**ONE, max_new_tokens=6)[0].tolist()) for _ in range(4)}
    greedy = [model.generate(**ONE, max_new_tokens=6, do_sample=False) for _ in range(2)]
    assert len(drawn) > 1 and torch.equal(*greedy)
    assert "warning" not in capfd.readouterr().err.lower()


def test_ctrl_c_ends_a_generation_that_calls_no_python():
    model = load(path_of("llama"), cache_lens=1 << 20)
    interrupt = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        model.generate(**ONE, max_new_tokens=(1 << 20) - 64, eos_token_id=None)
    interrupt.join()
    assert model.kt.engine.kv.pages_in_use == 0
    assert model.generate(**ONE, max_new_tokens=2, eos_token_id=None).shape[1] == 22


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_positional_inputs_and_default_lengths(model):
    assert model.generate(PROMPT, max_new_tokens=3).shape[1] == 23
    assert model.generate(inputs=PROMPT, max_new_tokens=3).shape[1] == 23
    assert model.generate(PROMPT, eos_token_id=None).shape[1] == 40  # transformers adds 20
    torch.manual_seed(0)
    assert model.generate(max_new_tokens=3, pad_token_id=1).shape == (1, 4)  # from bos


class Forbid(LogitsProcessor):
    def __init__(self, *tokens: int):
        self.tokens, self.calls = list(tokens), 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores = scores.clone()
        scores[:, self.tokens] = -float("inf")
        return scores


class StopAt(StoppingCriteria):
    def __init__(self, count: int):
        self.count = count

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 20 + self.count)


@pytest.mark.parametrize("lowered", [True, False])
@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_custom_processors_and_criteria(lowered):
    model = load(path_of("qwen3moe"), lowered=lowered)
    plain = new_tokens(model.generate(**ONE, max_new_tokens=8, eos_token_id=None), 20)[0]
    forbid = Forbid(*plain)
    out = model.generate(
        **ONE, max_new_tokens=8, logits_processor=LogitsProcessorList([forbid]), eos_token_id=None
    )
    assert forbid.calls == 8 and not set(new_tokens(out, 20)[0]) & set(plain)
    out = model.generate(**ONE, stopping_criteria=StoppingCriteriaList([StopAt(5)]))
    assert new_tokens(out, 20)[0] == plain[:5]


@pytest.mark.parametrize("lowered", [True, False])
def test_scores_and_logits_of_each_step(lowered):
    model = load(path_of("qwen3moe"), lowered=lowered)
    out = model.generate(
        **left_padded(PROMPTS), max_new_tokens=5, eos_token_id=None,
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    assert len(out.scores) == len(out.logits) == 5 and out.scores[0].shape == (3, vocabulary.SIZE)
    mask = torch.nn.functional.pad(left_padded(PROMPTS)["attention_mask"], (0, 5), value=1)
    with torch.no_grad():
        again = reference_of("qwen3moe")(input_ids=out.sequences, attention_mask=mask)
    again = again.logits[:, 69:-1]
    assert torch.allclose(torch.stack(out.logits, dim=1), again, atol=1e-3)


@pytest.mark.parametrize("loop", ["core", "transformers"])
def test_going_on_from_a_generations_cache(loop, model, loops):
    """A second turn evaluates the new columns only, and answers as if told all at once."""
    settings = {"eos_token_id": None, "return_dict_in_generate": True}
    if loop == "transformers":
        settings["output_scores"] = True
    batch = left_padded(PROMPTS)
    first = model.generate(**batch, max_new_tokens=6, **settings)
    more = torch.tensor([IDS[:3], IDS[3:6], IDS[6:9]])
    ids = torch.cat([first.sequences, more], dim=1)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 9), value=1)
    whole = model.generate(ids, attention_mask=mask, max_new_tokens=6, **settings).sequences
    cache = first.past_key_values
    assert cache.get_seq_length() == 75
    before = [sequence.length for sequence in cache.sequences]
    assert before == [25, 12, 75]
    again = model.generate(
        ids, attention_mask=mask, past_key_values=cache, max_new_tokens=6, **settings
    ).sequences
    assert torch.equal(whole, again)
    # One more column than asked about: its key was never needed before.
    assert [s.length - b for s, b in zip(cache.sequences, before, strict=True)] == [9] * 3
    assert set(loops) == {loop}


def test_a_streamer_gets_every_token_in_turn(model):
    class Collect:
        def __init__(self):
            self.values, self.ended = [], 0

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.ended += 1

    streamer = Collect()
    out = model.generate(**ONE, max_new_tokens=5, streamer=streamer, eos_token_id=None)
    assert streamer.values[0] == ONE["input_ids"].tolist() and streamer.ended == 1
    assert [one for value in streamer.values[1:] for one in value] == new_tokens(out, 20)[0]
    # A batch, through transformers' loop; and an exception in a streamer reaches the caller.
    streamer = Collect()
    out = model.generate(**left_padded(PROMPTS), max_new_tokens=3, streamer=streamer)
    assert torch.tensor(streamer.values[1:]).T.tolist() == new_tokens(out, 70)
    pool, before = model.kt.engine.kv, model.kt.engine.kv.pages_in_use
    streamer.put = lambda value: 1 // (len(value.shape) - 1)
    with pytest.raises(ZeroDivisionError):
        model.generate(**ONE, max_new_tokens=5, streamer=streamer)
    assert pool.pages_in_use == before


def test_text_streamers(model, capsys):
    from ktransformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path_of("qwen3moe"))
    settings = {"max_new_tokens": 12, "eos_token_id": None}
    text = tokenizer.decode(model.generate(**ONE, **settings)[0, 20:])
    model.generate(**ONE, **settings, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == text + "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    worker = threading.Thread(
        target=model.generate, kwargs={**ONE, **settings, "streamer": streamer}
    )
    worker.start()
    assert "".join(streamer) == text
    worker.join()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 3}, r"beam search \(num_beams\) is not built yet"),
        ({"num_beams": 2, "do_sample": True}, "beam search with sampling"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "beam search"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"dola_layers": "high"}, "DoLa"),
        ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
        ({"assistant_model": object()}, "assisted decoding"),
        ({"inputs_embeds": torch.zeros(1, 3, 128)}, "inputs_embeds are not supported"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "the prompt is empty"),
        ({"input_ids": IDS[:3]}, r'return_tensors="pt"'),
        ({"input_ids": torch.tensor(IDS[:3])}, r"a tensor \[batch, length\], not \[3\]"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        (
            {"input_ids": torch.tensor([[5], [7]]), "attention_mask": torch.tensor([[1], [0]])},
            "prompt 1 is empty",
        ),
        ({"input_ids": torch.tensor([[5, 40000]])}, "token id 40000 is outside the vocabulary"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_by_name_in_one_line(model, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        model.generate(**{"max_new_tokens": 2, "input_ids": PROMPT} | arguments)
    assert "\n" not in str(caught.value)


def test_a_prompt_longer_than_the_cache_and_an_answer_that_fills_it():
    model = load(path_of("llama"), cache_lens=64)
    long = torch.tensor([IDS[:65]])
    with pytest.raises(UserError, match="has 65 tokens, the cache holds 64; raise cache_lens"):
        model.generate(long, attention_mask=torch.ones_like(long), max_new_tokens=2)
    with pytest.raises(UserError, match="the cache is full.*cache_lens"):
        model.generate(**ONE, max_new_tokens=50, eos_token_id=None)
    assert model.kt.engine.kv.pages_in_use == 0
    assert model.generate(**ONE, max_new_tokens=45, eos_token_id=None).shape[1] == 65
