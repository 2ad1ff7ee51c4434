"""The official clients against a real server with a real model: plain, streaming, tools, schema,
log-probabilities."""

import json

import anthropic
import ollama
import openai
import pytest

from tests.support import smollm2
from tests.support.serving import Server

QUESTION = [{"role": "user", "content": "What is the capital of Japan? Answer in one sentence."}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Tokyo"]}},
           "required": ["city"], "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with Server(smollm2.dense_path(), "--model_name", "smollm2", "--cache_lens", "8192") as server:
        yield server
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="module")
def oai(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ant(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def oll(server):
    return ollama.Client(host=server.url)


# ---- OpenAI ----


def test_openai_plain_and_streamed_say_the_same(oai):
    assert [model.id for model in oai.models.list()] == ["smollm2"]
    options = {"model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    whole = oai.chat.completions.create(**options)
    assert "Tokyo" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    text, usage, reasons = "", None, []
    for chunk in oai.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
    assert text == whole.choices[0].message.content
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0 or usage.prompt_tokens >= 64
    assert [r for r in reasons if r] == ["stop"]


def test_openai_logprobs_and_choices(oai):
    got = oai.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=4, n=3,
        temperature=1.0, seed=5,
    )  # fmt: skip
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    for choice in got.choices:
        told = choice.logprobs.content
        assert "".join(t.token for t in told) == choice.message.content
        for token in told:
            assert token.logprob <= 0 and bytes(token.bytes).decode() == token.token
            best = [other.logprob for other in token.top_logprobs]
            assert len(best) == 4 and best == sorted(best, reverse=True)
            assert token.logprob <= best[0] + 1e-6
    again = oai.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=5, n=3, temperature=1.0, seed=5
    )
    said = [choice.message.content for choice in got.choices]
    assert [choice.message.content for choice in again.choices] == said
    assert len(set(said)) > 1


def test_openai_stop_bias_and_penalties(oai):
    options = {"model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    text = oai.chat.completions.create(**options).choices[0].message.content
    cut = oai.chat.completions.create(**options, stop=["Japan"]).choices[0]
    assert cut.message.content == text[: text.index("Japan")] and cut.finish_reason == "stop"
    first = oai.chat.completions.create(**options, logit_bias={"42": 100}, presence_penalty=2)
    assert first.choices[0].finish_reason == "length"


def test_openai_schema(oai):
    made = oai.chat.completions.create(
        model="smollm2", messages=QUESTION, temperature=1.0, seed=1, max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}},
    )  # fmt: skip
    value = json.loads(made.choices[0].message.content)
    assert set(value) == {"city", "people"} and isinstance(value["people"], int)
    regex = {"response_format": {"type": "regex", "regex": r"\d{3}-[A-C]{2}"}}
    text = oai.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=20, extra_body=regex
    ).choices[0].message.content  # fmt: skip
    import re

    assert re.fullmatch(r"\d{3}-[A-C]{2}", text)
    gbnf = {"response_format": {"type": "grammar", "grammar": 'root ::= "yes" | "no"'}}
    text = oai.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=20, extra_body=gbnf
    ).choices[0].message.content  # fmt: skip
    assert text in ("yes", "no")
    wanted = {"type": "json_object"}
    text = oai.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=200, response_format=wanted, seed=2,
        temperature=0,
    ).choices[0]  # fmt: skip
    assert text.message.content.startswith("{")
    assert text.finish_reason == "length" or isinstance(json.loads(text.message.content), dict)


@pytest.mark.parametrize(
    "kind, field, source, reason",
    [
        ("grammar", "grammar", "root ::= root", "lets nothing follow"),
        ("regex", "regex", "(a+)+b{1000000}", "too many expressions"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_openai_grammars_that_end_nowhere(oai, server, kind, field, source, reason, stream):
    """The matcher gives up in the middle of an answer; that must not look like a whole one."""
    wanted = {"response_format": {"type": kind, field: source}}
    with pytest.raises(
        openai.APIError, match=f"cannot be followed any further: .*{reason}"
    ) as info:
        got = oai.chat.completions.create(
            model="smollm2", messages=QUESTION, max_tokens=50, stream=stream, extra_body=wanted
        )
        for _ in got if stream else ():
            pass
    assert info.value.code == "invalid_grammar" and info.value.param == "response_format"


def test_openai_tools(oai):
    tools = [
        {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
        {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}},
    ]
    ask = [{"role": "user", "content": "What is the weather in Tokyo?"}]
    named = {"type": "function", "function": {"name": "get_weather"}}
    options = {"model": "smollm2", "messages": ask, "tools": tools, "max_tokens": 60, "seed": 3}
    choice = oai.chat.completions.create(**options, tool_choice=named).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Tokyo")
    calls = []
    for chunk in oai.chat.completions.create(**options, tool_choice=named, stream=True):
        calls += chunk.choices[0].delta.tool_calls or []
    assert calls[0].function.name == "get_weather" and calls[0].index == 0
    assert json.loads("".join(c.function.arguments for c in calls)) == json.loads(
        call.function.arguments
    )
    # The result goes back, and the conversation goes on.
    turn = [*ask, choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"}]  # fmt: skip
    answer = oai.chat.completions.create(
        model="smollm2", messages=turn, tools=tools, max_tokens=30, temperature=0
    )
    assert answer.choices[0].message.content
    plain = oai.chat.completions.create(**options, tool_choice="none", temperature=0)
    assert not plain.choices[0].message.tool_calls


def test_openai_completions_with_echo(oai):
    made = oai.completions.create(
        model="smollm2", prompt="The capital of Japan is", max_tokens=3, temperature=0, echo=True,
        logprobs=2,
    ).choices[0]  # fmt: skip
    assert made.text.startswith("The capital of Japan is") and "Tokyo" in made.text
    told = made.logprobs
    assert "".join(told.tokens) == made.text and told.token_logprobs[0] is None
    assert all(value <= 0 for value in told.token_logprobs[1:])
    assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(len(told.tokens))]
    assert all(len(top) >= 2 for top in told.top_logprobs[1:])
    scored = oai.completions.create(
        model="smollm2", prompt="The capital of Japan is", max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    assert scored.text == "The capital of Japan is"
    assert scored.logprobs.token_logprobs[1:] == pytest.approx(
        told.token_logprobs[1 : len(scored.logprobs.tokens)], abs=1e-5
    )
    several = oai.completions.create(
        model="smollm2", prompt=["One two three", "Red green"], max_tokens=4, n=2, temperature=1
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    ids = oai.completions.create(model="smollm2", prompt=[504, 3575, 282], max_tokens=2)
    assert ids.usage.prompt_tokens == 3
    chunks = oai.completions.create(model="smollm2", prompt="Red", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def test_openai_errors(oai):
    with pytest.raises(openai.NotFoundError, match="not served"):
        oai.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        oai.chat.completions.create(model="smollm2", messages=QUESTION, temperature=9)
    with pytest.raises(openai.BadRequestError, match="audio: not supported") as refused:
        oai.chat.completions.create(
            model="smollm2", messages=QUESTION, extra_body={"audio": {"voice": "x"}}
        )
    assert refused.value.code == "unsupported"
    with pytest.raises(openai.BadRequestError, match="context") as refused:
        oai.completions.create(model="smollm2", prompt="word " * 9000)
    assert refused.value.code == "context_length_exceeded"
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content\.0\.type: .*'text'"):
        oai.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": image}])
    for schema in ({"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError, match="json_schema"):
            oai.chat.completions.create(
                model="smollm2", messages=QUESTION, response_format=wanted, max_tokens=5
            )


# ---- Anthropic ----


def test_anthropic_plain_and_streamed(ant):
    options = {"model": "smollm2", "max_tokens": 40, "messages": QUESTION}
    options["extra_body"] = {"temperature": 0}
    whole = ant.messages.create(**options, system="You are terse.")
    assert "Tokyo" in whole.content[0].text and whole.stop_reason == "end_turn"
    with ant.messages.stream(**options, system="You are terse.") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = ant.messages.count_tokens(model="smollm2", messages=QUESTION, system="You are terse.")
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    cut = ant.messages.create(**options, stop_sequences=["Japan"])
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == "Japan"
    short = ant.messages.create(**options | {"max_tokens": 2})
    assert short.stop_reason == "max_tokens"


def test_anthropic_tools(ant):
    tools = [{"name": "get_weather", "description": "Weather", "input_schema": WEATHER}]
    ask = [{"role": "user", "content": "What is the weather in Tokyo?"}]
    options = {"model": "smollm2", "max_tokens": 60, "tools": tools, "messages": ask}
    choice = {"type": "tool", "name": "get_weather"}
    made = ant.messages.create(**options, tool_choice=choice)
    assert made.stop_reason == "tool_use"
    (block,) = made.content
    assert block.type == "tool_use" and block.input["city"] in ("Oslo", "Tokyo")
    with ant.messages.stream(**options, tool_choice={"type": "any"}) as stream:
        final = stream.get_final_message()
    assert final.content[-1].type == "tool_use" and final.content[-1].input["city"]
    turn = [
        *ask, {"role": "assistant", "content": [block.model_dump()]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}]},
    ]  # fmt: skip
    answer = ant.messages.create(**options | {"messages": turn})
    assert answer.content


def test_anthropic_errors(ant):
    with pytest.raises(anthropic.NotFoundError):
        ant.messages.create(model="claude-9", max_tokens=5, messages=QUESTION)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        ant.messages.create(model="smollm2", max_tokens=0, messages=QUESTION)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    with pytest.raises(anthropic.BadRequestError, match="content"):
        ant.messages.create(
            model="smollm2", max_tokens=5, messages=[{"role": "user", "content": [image]}]
        )


# ---- Ollama ----


def test_ollama_plain_and_streamed(oll):
    assert [model.model for model in oll.list().models] == ["smollm2"]
    assert oll.ps().models[0].model == "smollm2"
    shown = oll.show("smollm2")
    assert shown.details.family == "llama" and shown.details.quantization_level == "Q4_1"
    greedy = {"temperature": 0, "num_predict": 40}
    whole = oll.chat("smollm2", QUESTION, options=greedy)
    assert "Tokyo" in whole.message.content and whole.done_reason == "stop"
    assert whole.eval_count > 0 and whole.prompt_eval_duration > 0
    parts = list(oll.chat("smollm2", QUESTION, options=greedy, stream=True, keep_alive="5m"))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].done and not parts[0].done
    once = oll.generate("smollm2", QUESTION[0]["content"], options=greedy)
    assert "Tokyo" in once.response
    raw = oll.generate("smollm2", "The capital of Japan is", raw=True, options=greedy)
    assert "Tokyo" in raw.response
    assert oll.generate("smollm2", keep_alive=0).done_reason == "load"


def test_ollama_schema_logprobs_and_tools(oll):
    made = oll.chat("smollm2", QUESTION, format=CITY, options={"seed": 4, "num_predict": 100})
    assert set(json.loads(made.message.content)) == {"city", "people"}
    told = oll.chat("smollm2", QUESTION, logprobs=True, top_logprobs=2, options={"num_predict": 4})
    assert len(told.logprobs) == 4 and len(told.logprobs[0].top_logprobs) == 2
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "Weather",
                                               "parameters": WEATHER}}]  # fmt: skip
    got = oll.chat("smollm2", QUESTION, tools=tools, options={"num_predict": 10})
    assert got.message.content or got.message.tool_calls


def test_ollama_errors(oll):
    with pytest.raises(ollama.ResponseError, match="not served") as refused:
        oll.chat("llama9", QUESTION)
    assert refused.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="num_ctx"):
        oll.chat("smollm2", QUESTION, options={"num_ctx": 1 << 20})
    with pytest.raises(ollama.ResponseError, match="images: not supported by this server"):
        oll.chat("smollm2", [{"role": "user", "content": "x", "images": [b"abc"]}])


# ---- this server's own ----


def test_native_routes(server):
    text = "What is the capital of Japan? 🙂"
    ids = server.json("/tokenize", {"content": text})["tokens"]
    assert server.json("/detokenize", {"tokens": ids})["content"] == text
    pieces = server.json("/tokenize", {"content": text, "with_pieces": True})["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    made = server.json("/apply-template", {"messages": QUESTION})
    assert made["prompt"].endswith("<|im_start|>assistant\n") and made["tokens"] > 10
    live = server.until_idle()
    assert live["cache_pages_used"] == live["cache_pages_kept"]
    placement = server.json("/placement")
    assert placement["totals"]["weights_bytes"] > 50e6 and placement["nodes"]
    head = next(row for row in placement["rows"] if row["module"] == "lm_head")
    assert head["formats"] == ["q8_0"] and head["rule"] and head["why"]
    assert placement["capacity_bytes"]["cpu"] > placement["device_bytes"]["cpu"]
    status, headers, data = server.call("/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    lines = [line for line in data.decode().splitlines() if not line.startswith("#")]
    values = dict(line.rsplit(" ", 1) for line in lines)
    assert float(values["ktransformers_requests_total"]) > 10
    assert float(values["ktransformers_requests_running"]) == 0
    assert int(values['ktransformers_first_token_seconds_bucket{le="+Inf"}']) > 10
    status, _, data = server.call("/")
    assert status == 200 and b"Ollama is running" in data
