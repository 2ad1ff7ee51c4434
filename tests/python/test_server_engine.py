"""The batching engine on miniatures: what a request reads is what it would read alone."""

import queue
import threading
import time

import pytest

from ktransformers.errors import UserError
from ktransformers.runtime.engine import BatchEngine
from ktransformers.runtime.engine_request import Busy, Request
from ktransformers.runtime.session import ChatSession, SamplingOptions
from tests.support import vocabulary
from tests.support.pairs import load, path_of


def text(count: int, first: int = 7) -> list[int]:
    return [i % vocabulary.SIZE for i in range(first, first + 13 * count, 13)]


class Served:
    """An engine whose deltas are gathered by generation."""

    def __init__(
        self, name: str = "qwen3moe", activations: str = "auto", cache_lens=2048, **options
    ):
        from ktransformers.checkpoint.gguf import open_model
        from ktransformers.checkpoint.tokenizer import build_tokenizer

        path = path_of(name)
        self.model = load(path, activations=activations, cache_lens=cache_lens)
        tokenizer = build_tokenizer(open_model(path))
        self.tokens, self.ends, self.deltas = {}, {}, {}
        self.changed = threading.Condition()
        self.engine = BatchEngine(self.model, tokenizer, self.take, **options)
        self.engine.start()

    def take(self, ready):
        with self.changed:
            for one, delta in ready:
                self.tokens.setdefault(one, []).extend(delta.tokens)
                self.deltas.setdefault(one, []).append(delta)
                if delta.finish:
                    assert one not in self.ends, "ended twice"
                    self.ends[one] = delta
            self.changed.notify_all()

    def wait(self, condition, seconds: float = 60.0):
        with self.changed:
            assert self.changed.wait_for(condition, seconds), "nothing came"

    def answer(self, *requests: Request) -> list[list[int]]:
        """All requests at once -> the tokens of each."""
        made = [self.engine.submit([request])[0] for request in requests]
        self.wait(lambda: all(one in self.ends for one in made))
        assert all(self.ends[one].finish in ("stop", "length") for one in made), self.ends
        return [self.tokens[one] for one in made]


def request(prompt, count=12, **fields) -> Request:
    sampling = fields.pop("sampling", SamplingOptions())
    return Request(prompt=list(prompt), sampling=sampling, max_new_tokens=count, **fields)


@pytest.fixture
def served():
    made = []

    def make(*words, **options) -> Served:
        made.append(Served(*words, **options))
        return made[-1]

    yield make
    for one in made:
        assert one.engine.close(10), "the engine's thread does not end"
        assert one.engine.pool.pages_in_use == 0, "pages were lost"


def sampled(seed: int) -> SamplingOptions:
    return SamplingOptions(temperature=1.0, top_p=0.9, seed=seed)


def test_a_batch_reads_what_each_would_read_alone(served):
    serving = served(prefix_cache=False)
    session = ChatSession(serving.model)
    prompts = [text(n, first) for n, first in ((5, 1), (70, 2), (200, 3), (1, 4), (129, 5))]
    alone = []
    for seed, prompt in enumerate(prompts):
        session.append(prompt)
        options = SamplingOptions(temperature=1.0, top_p=0.9, seed=seed, max_new_tokens=12)
        alone.append(list(session.generate(options)))
    session.append([1])  # gives its pages back, but for one
    session.sequence.truncate(0)
    together = serving.answer(
        *(request(prompt, sampling=sampled(seed)) for seed, prompt in enumerate(prompts))
    )
    assert together == alone


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek_v3"])
def test_deterministic_whatever_cache_batch_and_chunking(served, name):
    """In exact arithmetic a seed gives the same tokens however they came about."""
    first = text(150)
    answers = []
    for options in ({"prefix_cache": False}, {"prefix_cache": True}, {"max_batch": 2}):
        serving = served(name, "exact", **options)
        if "max_batch" in options:
            serving.engine.scheduler.chunk = 7
        (once,) = serving.answer(request(first, sampling=sampled(3)))
        turn = first + once + text(30, 9)
        again = serving.answer(
            request(turn, sampling=sampled(4)), request(turn, sampling=sampled(4)),
            request(text(90, 5), sampling=sampled(5)),
        )  # fmt: skip
        assert again[0] == again[1]
        answers.append((once, again))
        if options.get("prefix_cache"):
            assert serving.engine.stats.cached_tokens >= 128
    assert answers[0] == answers[1] == answers[2]
    serving = served(name, "exact")
    assert serving.answer(request(first, sampling=sampled(99)))[0] != answers[0][0], (
        "another seed gives the same answer: the comparison sees nothing"
    )


def test_a_cached_prompt_is_not_evaluated_again(served):
    serving = served()
    prompt = text(1000)
    (cold,) = serving.answer(request(prompt))
    evaluated = serving.engine.stats.evaluated
    assert evaluated == 1000
    (warm,) = serving.answer(request(prompt))
    assert warm == cold
    assert serving.engine.stats.evaluated - evaluated == 1000 - 960
    (other,) = serving.answer(request([5, *prompt[1:]]))
    assert serving.engine.stats.evaluated - evaluated > 1000


def test_generations_that_outgrow_the_cache_wait_and_say_the_same(served):
    """Pages for two and a half answers, four answers: some are sent back and go on later."""
    alone = served(prefix_cache=False)
    wanted = [alone.answer(request(text(40, n), 200, sampling=sampled(n)))[0] for n in range(4)]
    serving = served(cache_lens=640)
    got = serving.answer(*(request(text(40, n), 200, sampling=sampled(n)) for n in range(4)))
    assert got == wanted
    assert serving.engine.stats.preempted > 0


def test_cancelling_ends_within_two_steps_and_frees_the_pages(served):
    serving = served()
    long = request(text(300), 1500)
    one = serving.engine.submit([long])[0]
    serving.wait(lambda: len(serving.tokens.get(one, ())) > 3)
    steps = serving.engine.stats.steps
    one.cancel()
    serving.wait(lambda: one in serving.ends)
    assert serving.engine.stats.steps - steps <= 2 + 1  # the one that was under way
    assert serving.ends[one].finish == "cancelled"
    assert serving.engine.running == []


def test_choices_share_the_prompt(served):
    serving = served()
    requests = [request(text(200), sampling=sampled(n)) for n in range(3)]
    made = serving.engine.submit(requests)
    serving.wait(lambda: all(one in serving.ends for one in made))
    assert serving.engine.stats.evaluated == 200 + 2 * (200 - 192)
    assert len({tuple(serving.tokens[one]) for one in made}) > 1


def test_the_queue_has_an_end(served):
    serving = served(max_batch=1, max_queue=2)
    made = []
    with pytest.raises(Busy) as refused:
        for _ in range(10):
            made += serving.engine.submit([request(text(100), 400)])
    assert 3 <= len(made) <= 4 and refused.value.retry_after >= 1
    for one in made:
        one.cancel()
    serving.wait(lambda: all(one in serving.ends for one in made))
    with pytest.raises(UserError, match="the prompt has 5000 tokens"):
        serving.engine.submit([request(text(5000))])
    with pytest.raises(UserError, match="empty"):
        serving.engine.submit([request([])])
    with pytest.raises(UserError, match="vocabulary"):
        serving.engine.submit([request([1 << 29])])
    with pytest.raises(UserError, match="top_p"):
        serving.engine.submit([request([1], sampling=SamplingOptions(temperature=1, top_p=7))])


def test_logprobs_are_those_of_the_model(served):
    import numpy as np

    serving = served("llama")
    prompt = text(90)
    one = serving.engine.submit([request(prompt, 4, top_logprobs=3, prompt_logprobs=2)])[0]
    serving.wait(lambda: one in serving.ends)
    told = [entry for delta in serving.deltas[one] for entry in delta.logprobs]
    before = [entry for delta in serving.deltas[one] for entry in delta.prompt_logprobs]
    tokens = prompt + serving.tokens[one]
    sequence = serving.engine.pool.make_sequence()
    count = len(tokens)
    logits, _ = serving.model.kt.decoder.step(
        tokens, np.arange(count), np.zeros(count), np.array([1] * 90 + [0] * (count - 90)),
        [sequence], np.arange(count),
    )  # fmt: skip
    logits = logits.astype(np.float64)
    wanted = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    wanted -= logits.max(1, keepdims=True)
    assert [entry[0] for entry in before + told] == tokens[1:]
    for place, (token, value, top) in enumerate(before + told):
        assert value == pytest.approx(wanted[place, token], abs=1e-4)
        best = np.argsort(-wanted[place], kind="stable")[: len(top)]
        assert [t for t, _ in top] == list(best)
        assert [v for _, v in top] == pytest.approx(wanted[place, best], abs=1e-4)
    assert {len(top) for _, _, top in told} == {3} and {len(t) for _, _, t in before} == {2}


def test_bias_minimum_and_stop_ids(served):
    serving = served("llama")
    (free,) = serving.answer(request(text(20), 8))
    (banned,) = serving.answer(request(text(20), 8, logit_bias={free[0]: -100.0}))
    assert banned[0] != free[0]
    (forced,) = serving.answer(request(text(20), 3, logit_bias={77: 100.0}))
    assert forced == [77] * 3
    size = serving.engine.kt.decoder.vocab_size
    with pytest.raises(UserError, match=f"logit_bias has token id {size}; the vocabulary has"):
        serving.answer(request(text(20), 3, logit_bias={77: 1.0, size: 1.0}))
    (stopped,) = serving.answer(request(text(20), 8, stop_ids=(free[2],)))
    assert stopped == free[: free.index(free[2])]
    (longer,) = serving.answer(request(text(20), 8, stop_ids=(free[0],), min_new_tokens=5))
    assert free[0] not in longer[:5] and len(longer) >= 5


def test_a_paused_reader_holds_nobody_up(served):
    serving = served()
    slow = serving.engine.submit([request(text(20), 400)])[0]
    serving.wait(lambda: len(serving.tokens.get(slow, ())) > 2)
    slow.pause(True)
    time.sleep(0.1)
    before = len(serving.tokens[slow])
    serving.answer(request(text(30, 3), 30))
    assert len(serving.tokens[slow]) <= before + 1
    slow.pause(False)
    serving.wait(lambda: slow in serving.ends)
    assert len(serving.tokens[slow]) == 400


def test_every_answer_goes_on_in_every_step_beside_a_long_prompt(served):
    serving = served()
    serving.engine.scheduler.chunk = 32
    others = [serving.engine.submit([request(text(20, n), 700)])[0] for n in (1, 2)]
    serving.wait(lambda: all(len(serving.tokens.get(one, ())) > 3 for one in others))
    stats = serving.engine.stats
    before = [len(serving.tokens[one]) for one in others], stats.steps
    long = serving.engine.submit([request(text(1000, 9), 2)])[0]
    serving.wait(lambda: serving.tokens.get(long))
    steps = stats.steps - before[1]
    assert steps >= 1000 / 32, "the prompt was evaluated in larger pieces"
    for one, had in zip(others, before[0], strict=True):
        assert len(serving.tokens[one]) - had >= min(steps, 700 - had) - 3
    for one in (*others, long):
        one.cancel()
    serving.wait(lambda: all(one in serving.ends for one in (*others, long)))


def test_closing_ends_everybody(served):
    serving = served(max_batch=1)
    made = [serving.engine.submit([request(text(50), 1000)])[0] for _ in range(3)]
    serving.wait(lambda: serving.tokens)
    assert serving.engine.close(10)
    assert [serving.ends[one].finish for one in made] == ["cancelled"] * 3
    with pytest.raises(Busy, match="shutting down"):
        serving.engine.submit([request([1])])


def test_submitting_from_many_threads(served):
    serving = served(max_queue=1000)
    made: queue.Queue = queue.Queue()

    def work(number: int) -> None:
        for n in range(8):
            one = serving.engine.submit([request(text(10 + n, number), 5)])[0]
            if n % 3 == 0:
                one.cancel()
            made.put(one)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everyone = [made.get() for _ in range(64)]
    serving.wait(lambda: all(one in serving.ends for one in everyone))
