"""The chat's session over real models, run both ways: its answers, and what stays cached."""

import pytest

from ktransformers.runtime.session import ChatSession, SamplingOptions
from tests.support import vocabulary
from tests.support.pairs import load, pair, path_of, reference_of
from tests.support.reference import Reference

CONVERSATION = [int(i) % vocabulary.SIZE for i in range(7, 7 + 13 * 90, 13)]


@pytest.mark.parametrize("lowered", [True, False])
def test_answers_are_those_of_the_reference_and_old_turns_stay_cached(lowered):
    model = pair("deepseek_v3").model if lowered else load(path_of("deepseek_v3"), lowered=False)
    session = ChatSession(model)
    greedy = SamplingOptions(max_new_tokens=6)
    reference = Reference(reference_of("deepseek_v3"))

    session.append(CONVERSATION[:70])
    answer = list(session.generate(greedy))
    assert answer == reference.greedy(CONVERSATION[:70], 6)[0]
    assert session.stats.prompt_count == 70 and session.stats.eval_count == 5

    turn = CONVERSATION[:70] + answer + CONVERSATION[70:80]
    session.append(turn)
    assert list(session.generate(greedy)) == reference.greedy(turn, 6)[0]
    # The last token of an answer is evaluated with the next turn.
    assert session.stats.prompt_count == 11

    other = [*CONVERSATION[:40], 5, 6]  # an edited conversation: 40 tokens are still the same
    session.append(other)
    assert list(session.generate(greedy)) == reference.greedy(other, 6)[0]
    assert session.stats.prompt_count == 2

    session.append(other)  # the very same again: only the last token's logits are needed
    assert list(session.generate(greedy)) == reference.greedy(other, 6)[0]
    assert session.stats.prompt_count == 1


def test_stop_ids_and_stop():
    session = ChatSession(pair("llama").model)
    session.append(CONVERSATION[:20])
    free = list(session.generate(SamplingOptions(max_new_tokens=8)))
    session.append(CONVERSATION[:20])
    stopping = SamplingOptions(max_new_tokens=8, stop_ids=(free[3],))
    assert list(session.generate(stopping)) == free[: free.index(free[3])]
    session.append(CONVERSATION[:20])
    taken = []
    for token in session.generate(SamplingOptions(max_new_tokens=8)):
        taken.append(token)
        if len(taken) == 2:
            session.stop()
    assert taken == free[:2]
    assert session.cached[:20] == CONVERSATION[:20]
    assert session.sequence.length == len(session.cached)
