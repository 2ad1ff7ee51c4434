"""Parts of the server without a model: scheduling, stop texts, templates in their helper,
streams."""

import asyncio
import os
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ktransformers.errors import UserError
from ktransformers.runtime.engine_schedule import Scheduler, shared_equally
from ktransformers.runtime.engine_text import StopFinder
from ktransformers.server import sse
from ktransformers.server.anthropic_types import MessagesRequest
from ktransformers.server.errors import validation_error
from ktransformers.server.openai_types import ChatRequest
from ktransformers.server.templates import Templates

# ---- the schedule, against a model of a machine ----


class Machine:
    """Seconds of a step: reading weights, which prompt rows need nearly all of, and arithmetic."""

    def __init__(self, plain: float, fixed: float, per_row: float):
        self.plain, self.fixed, self.per_row = plain, fixed, per_row

    def step(self, decoding: int, rows: int) -> float:
        seconds = self.plain * (1 + 0.15 * (decoding - 1)) if decoding else 0.0
        return seconds + (self.fixed + rows * self.per_row if rows else 0.0)


MACHINES = {
    "30B-A3B, 2 cores": Machine(0.037, 0.1, 0.01),
    "30B-A3B, fast": Machine(0.013, 0.1, 0.002),
    "135M": Machine(0.002, 0.001, 0.0003),
    "V3": Machine(0.12, 2.0, 0.02),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("streams", [1, 4, 7])
def test_streams_keep_their_speed_beside_a_long_prompt(name, streams):
    machine, scheduler = MACHINES[name], Scheduler(512)
    for _ in range(20):
        scheduler.ran(streams, 0, machine.step(streams, 0))
    left, clock, steps, longest = 8192, 0.0, 0, 0.0
    while left:
        (rows,) = scheduler.plan(streams, [left])
        seconds = machine.step(streams, rows)
        scheduler.ran(streams, rows, seconds)
        left, clock, steps = left - rows, clock + seconds, steps + 1
        longest = max(longest, seconds)
    kept = steps * machine.step(streams, 0) / clock
    assert 0.4 <= kept <= 0.75, kept
    alone = sum(machine.step(0, 512) for _ in range(16))
    assert clock <= 6 * alone, "the prompt itself starves"


def test_a_prompt_alone_gets_whole_chunks_and_a_new_one_is_not_behind_it():
    scheduler = Scheduler(512)
    assert scheduler.plan(0, [8192]) == [512]
    assert scheduler.plan(0, [8192, 30]) == [482, 30]
    assert scheduler.plan(0, [8192, 8192]) == [256, 256]
    assert scheduler.plan(3, []) == []


@given(budget=st.integers(0, 600), wants=st.lists(st.integers(1, 9000), max_size=9))
def test_sharing_gives_all_of_the_budget_and_nobody_more_than_another_lacks(budget, wants):
    rows = shared_equally(budget, wants)
    assert sum(rows) == min(budget, sum(wants))
    assert all(0 <= row <= want for row, want in zip(rows, wants, strict=True))
    short = [row for row, want in zip(rows, wants, strict=True) if row < want]
    assert all(row <= min(short) + 1 for row in rows if short)


# ---- stop texts ----


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    places=st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_texts_wherever_the_pieces_end(text, stops, places):
    found = [text.find(stop) for stop in stops if stop in text]
    wanted = text[: min(found)] if found else text
    finder = StopFinder(tuple(stops))
    marks = sorted({0, len(text), *(p for p in places if p < len(text))})
    got = "".join(finder.push(text[a:b]) for a, b in zip(marks, marks[1:], strict=False))
    if finder.found is None:
        got += finder.finish()
    # Where two overlap, the one that is complete first ends the text.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert finder.found is None or finder.found in stops
    assert got == wanted or (len(set(ends)) > 1 and wanted in text and text.startswith(got))
    assert bool(finder.found) == bool(found)
    assert not any(stop in got for stop in stops)


# ---- templates ----

MESSAGES = [{"role": "user", "content": "hi {{ 7 * 7 }}"}]


@pytest.fixture
def templates():
    made = []

    def make(source: str, **options) -> Templates:
        made.append(Templates({"default": source}, {"bos_token": "<s>"}, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert one.process_id is None


def test_rendering_is_transformers_own(templates):
    """Real constructions of templates, held to transformers' apply_chat_template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    sources = [
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m['content'] | trim }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
        "{%- set ns = namespace(x=0) %}{%- for m in messages %}{%- set ns.x = ns.x + 1 %}"
        "{%- if loop.index0 == 9 %}{%- break %}{%- endif %}{%- endfor %}{{ ns.x }}",
        "{% for t in tools or [] %}{{ t | tojson(indent=2) }}{{ t | tojson }}{% endfor %}",
        "{% generation %}a{{ messages[0].content[::-1] }}{% endgeneration %}\n   {% if true %}\nb"
        "{% endif %}\n",
        "{{ strftime_now('%Y') }}{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    ]
    tools = [{"type": "function", "function": {"name": "é<&>", "parameters": {"a": [1, None]}}}]
    for source in sources:
        wanted, _ = render_jinja_template(
            conversations=[MESSAGES], tools=tools, chat_template=source,
            add_generation_prompt=True, bos_token="<s>",
        )  # fmt: skip
        got = templates(source).render(MESSAGES, tools=tools, add_generation_prompt=True)
        assert got == wanted[0], source


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ self._TemplateReference__context.eval_ctx }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set n = namespace(a=1) %}{% set n._x = 2 %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ 'x' * 10**12 }}",
    "{{ range(10**9) | list }}",
    "{{ 'ab' | center(10**10) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ (10**(10**8)) | string | length }}",
    "{{ raise_exception('no such role') }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_templates_end_in_one_line_and_in_time(templates, source):
    began = time.monotonic()
    try:
        text = templates(source, seconds=1.0).render(MESSAGES)
        assert len(text) < 2000 and "root:" not in text and "uid=" not in text
        assert "<class" not in text and "module" not in text
    except UserError as error:
        assert str(error).startswith("chat template: ") and "\n" not in str(error)
    assert time.monotonic() - began < 20


def test_a_helper_that_hung_or_died_is_replaced(templates):
    source = (
        "{% if messages[0].content == 'hang' %}{% for a in range(99999) %}{% for b in range(99999)"
    )
    source += " %}{% endfor %}{% endfor %}{% endif %}fine"
    one = templates(source, seconds=0.5)
    assert one.render(MESSAGES) == "fine"
    with pytest.raises(UserError, match="gave no text in 0.5 s"):
        one.render([{"role": "user", "content": "hang"}])
    assert one.render(MESSAGES) == "fine"
    os.kill(one.process_id, signal.SIGKILL)
    time.sleep(0.1)
    assert one.render(MESSAGES) == "fine"


def test_a_template_that_is_no_jinja(templates):
    with pytest.raises(UserError, match="chat template: "):
        templates("{% for %}")
    with pytest.raises(UserError, match="more than"):
        templates("x" * (1 << 20))


def test_the_helper_imports_little():
    import subprocess
    import sys

    code = (
        "import sys, ktransformers.server.template_worker\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'ktransformers._core', 'numpy'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done


def test_a_stream_speaks_while_nothing_comes_and_leaves_a_reader_that_takes_nothing(monkeypatch):
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)
    monkeypatch.setattr(sse, "WRITE_SECONDS", 0.1)
    closed = []

    async def parts(pause: float):
        try:
            for word in (b"one", b"two"):
                await asyncio.sleep(pause)
                yield word
        finally:
            closed.append(True)

    async def bodies(pause: float, takes: bool) -> list[bytes]:
        sent = []

        async def send(message):
            sent.append(message.get("body", b""))
            if not takes and len(sent) > 2:
                await asyncio.sleep(30)

        await asyncio.wait_for(sse.events(parts(pause), "/v1/x").stream_response(send), 5)
        return sent

    spoken = asyncio.run(bodies(0.1, takes=True))
    assert spoken.count(b": ping\n\n") >= 4
    assert [part for part in spoken if b"ping" not in part] == [b"", b"one", b"two", b""]
    assert asyncio.run(bodies(0.0, takes=True)) == [b"", b"one", b"two", b""]
    assert b"two" not in asyncio.run(bodies(0.0, takes=False))[3:]
    assert closed == [True] * 3, "a source is left running"


# ---- what a refused request is told ----

QUESTION = {"messages": [{"role": "user", "content": "x"}]}
PICTURE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
SECRET = {"messages": [{"role": "user", "content": [{"type": "secret"}]}]}


@pytest.mark.parametrize(
    "kind, fields, told",
    [
        (ChatRequest, {}, "messages: Field required"),
        (ChatRequest, QUESTION | {"Odd-Name": 1}, "Odd-Name: not supported by this server"),
        (ChatRequest, PICTURE, "messages.0.content.0.type: Input should be 'text'"),
        (ChatRequest, QUESTION | {"stop": [""]}, "stop.0: String should have at least 1 character"),
        (ChatRequest, QUESTION | {"logit_bias": {"a": 1}}, "logit_bias.a: String should match"),
        (
            MessagesRequest,
            SECRET | {"model": "m", "max_tokens": 1},
            "messages.0.content.0.type: Input should be one of 'text', 'thinking'",
        ),
    ],
)
def test_a_refused_field_is_named_and_nothing_of_pydantic(kind, fields, told):
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(fields)
    message = validation_error(refused.value.errors()).message
    assert message.startswith(told) and "secret" not in message
