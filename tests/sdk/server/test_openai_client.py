"""The official client of OpenAI against `stackloom serve`: it streams, calls a tool, cancels, and thinks heavily."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import openai
import pytest

from stackloom.core.chat import Message, ToolCall
from stackloom.plugins.reasoner.question import Summarizing, Thought

ASK = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Set a light",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}, "on": {"type": "boolean"}},
            "required": ["colour", "on"],
            "additionalProperties": False,
        },
    },
}


def chat(client, **options):
    return client.chat.completions.create(model="tiny", messages=ASK, **{"seed": 1, "max_tokens": 12} | options)


def idle(engine):
    """Wait until the engine has let go of everything."""
    deadline = time.monotonic() + 10
    while engine.running or engine.waiting:
        assert time.monotonic() < deadline, "the engine goes on"
        time.sleep(0.01)


def test_models_are_listed_and_found(endless):
    client, _ = endless
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.models.retrieve("gpt-4")


def test_a_stream_holds_what_the_whole_answer_does(endless):
    client, _ = endless
    whole = chat(client, n=2)
    stream = chat(client, n=2, stream=True, stream_options={"include_usage": True})
    texts, finishes, usage = {0: "", 1: ""}, {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes.get(choice.index)
    assert [texts[choice.index] for choice in whole.choices] == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert finishes == {0: "length", 1: "length"}
    assert usage == whole.usage
    assert (usage.completion_tokens, usage.total_tokens) == (24, 24 + usage.prompt_tokens)


def test_log_probabilities_name_tokens_that_make_the_text(endless):
    client, _ = endless
    whole = chat(client, temperature=0, logprobs=True, top_logprobs=3)
    told = whole.choices[0].logprobs.content
    assert len(told) == 12
    assert [len(token.top_logprobs) for token in told] == [3] * 12
    assert all(token.logprob == token.top_logprobs[0].logprob for token in told)  # greedy
    streamed = [
        token
        for chunk in chat(client, temperature=0, logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in told]


def test_a_seed_repeats_and_its_absence_does_not(endless):
    client, _ = endless
    same, again, other = (chat(client, seed=seed).choices[0].message.content for seed in (7, 7, 8))
    assert same == again != other
    assert len({chat(client, seed=None).choices[0].message.content for _ in range(3)}) == 3


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_light"}}])
def test_a_forced_call_has_arguments_that_keep_to_the_schema(endless, choice):
    client, _ = endless
    message = chat(client, tools=[TOOL], tool_choice=choice, max_tokens=200).choices[0].message
    (made,) = message.tool_calls
    arguments = json.loads(made.function.arguments)
    assert (made.function.name, set(arguments)) == ("set_light", {"colour", "on"})
    assert arguments["colour"] in ("red", "green")
    assert type(arguments["on"]) is bool
    answer = {"role": "tool", "tool_call_id": made.id, "content": "done"}
    client.chat.completions.create(model="tiny", messages=[*ASK, message, answer], tools=[TOOL], max_tokens=2)


def test_a_streamed_call_comes_whole_and_without_its_markup(endless):
    client, _ = endless
    chunks = list(chat(client, tools=[TOOL], tool_choice="required", max_tokens=200, stream=True))
    calls = [made for chunk in chunks for made in chunk.choices[0].delta.tool_calls or ()]
    assert [made.function.name for made in calls] == ["set_light"]
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_response_format_is_kept(endless):
    client, _ = endless
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    found = chat(client, response_format=asked, max_tokens=100)
    assert 0 <= json.loads(found.choices[0].message.content)["age"] <= 99
    assert found.choices[0].finish_reason == "stop"


def test_plain_completions_take_texts_and_tokens(endless):
    client, _ = endless
    found = client.completions.create(model="tiny", prompt=["ab", "cd"], n=2, max_tokens=5, logprobs=2, seed=0)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) == 5 for choice in found.choices)
    assert found.usage.completion_tokens == 20
    by_tokens = client.completions.create(model="tiny", prompt=[64, 65], max_tokens=5, temperature=0)
    by_text = client.completions.create(model="tiny", prompt="ab", max_tokens=5, temperature=0)
    assert by_tokens.choices[0].text == by_text.choices[0].text
    pieces = client.completions.create(model="tiny", prompt="ab", max_tokens=5, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == by_text.choices[0].text


def test_a_client_that_leaves_a_stream_frees_its_rows(endless):
    client, serving = endless
    before = serving.metrics.cancelled._value.get()
    with chat(client, n=3, max_tokens=600, stream=True) as stream:
        for number, _ in enumerate(stream):
            if number == 10:
                break
    idle(serving.engine)
    assert serving.metrics.cancelled._value.get() == before + 1


def test_a_client_that_leaves_a_whole_answer_frees_its_row(endless):
    client, serving = endless
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(timeout=0.3), max_tokens=600, n=8)
    idle(serving.engine)
    assert chat(client).choices[0].finish_reason == "length"


def test_heavy_thinking_answers_and_its_usage_adds_up(brief):
    client, _ = brief
    options = {"width": 4, "seed": 3, "max_tokens": 60, "min_answers": 1}
    whole = chat(client, extra_body={"heavy": options})
    heavy = whole.model_extra["heavy"]
    assert len(heavy["trajectories"]) == 4
    spent = sum(one["tokens"] for one in heavy["trajectories"]) + heavy["summary_tokens"]
    assert whole.usage.completion_tokens == spent > 0
    assert whole.usage.completion_tokens_details.reasoning_tokens == spent - heavy["summary_tokens"]
    assert whole.choices[0].message.content
    assert whole.choices[0].message.model_extra["reasoning_content"].count("[thinker 1.") == 4
    asked = {"extra_body": {"heavy": options}, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(chat(client, **asked))
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert _told(pieces, chunks) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def _told(pieces, chunks):
    """The answer in a stream's pieces: all of them, or what came after the empty line."""
    ended = next(chunk.model_extra["heavy"] for chunk in chunks if "heavy" in chunk.model_extra)
    return pieces[-1].removeprefix("\n\n") if ended["replaced"] else "".join(pieces).strip()


class Scripted:
    """A reasoner that says what it is told to."""

    config = SimpleNamespace(rounds_made=(2,), max_tokens=16)

    def __init__(self, events):
        self.events = events

    async def think(self, question):
        for event in self.events:
            yield event


def thought(text, *, calls=()):
    return Thought(Message("assistant", text, calls), (), {}, 9, 20, 5, "width", "summary")


@pytest.mark.parametrize(
    ("written", "answer", "content", "replaced"),
    [
        (["The ans", "wer is 42."], "The answer is 42.", "The answer is 42.", False),
        ([" The answer", " is 42. "], "The answer is 42.", " The answer is 42. ", False),
        (["The answer"], "The answer is 42.", "The answer is 42.", False),
        (["Half an ans"], "42", "Half an ans\n\n42", True),
        ([], "42", "42", False),
    ],
)
def test_a_stream_carries_the_summary_as_it_is_written(brief, monkeypatch, written, answer, content, replaced):
    client, serving = brief
    events = [Summarizing(text, "", 1) for text in written] + [thought(answer)]
    monkeypatch.setattr(serving, "reasoner", lambda options: Scripted(events))
    chunks = list(chat(client, extra_body={"heavy": {}}, stream=True, stream_options={"include_usage": True}))
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(pieces) == content
    assert pieces[: len(written)] == written
    assert _told(pieces, chunks) == answer
    (ended,) = [chunk.model_extra["heavy"] for chunk in chunks if "heavy" in chunk.model_extra]
    assert ended["replaced"] is replaced
    assert chunks[-1].usage.completion_tokens == 9
    assert chat(client, extra_body={"heavy": {}}).choices[0].message.content == answer


def test_a_summary_that_calls_a_tool_streams_the_call(brief, monkeypatch):
    client, serving = brief
    events = [Summarizing("I look it up.", "", 4), thought("I look it up.", calls=(ToolCall("find", {"id": 7}, "c1"),))]
    monkeypatch.setattr(serving, "reasoner", lambda options: Scripted(events))
    chunks = list(chat(client, extra_body={"heavy": {}}, stream=True))
    calls = [made for chunk in chunks for choice in chunk.choices for made in choice.delta.tool_calls or ()]
    assert [(made.function.name, made.function.arguments) for made in calls] == [("find", '{"id": 7}')]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_heavy_thinking_in_which_nobody_answers_is_not_the_servers_failure(endless):
    client, serving = endless
    with pytest.raises(openai.UnprocessableEntityError, match="none of 2 thinkers"):
        chat(client, extra_body={"heavy": {"width": 2, "max_tokens": 4}})
    with pytest.raises(openai.BadRequestError, match="width"):
        chat(client, extra_body={"heavy": {"width": 0}})
    with pytest.raises(openai.BadRequestError, match="widht"):
        chat(client, extra_body={"heavy": {"widht": 2}})
    idle(serving.engine)


def test_a_wrong_or_missing_token_is_refused_everywhere_but_for_health(endless):
    client, _ = endless
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="wrong"))
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    url = str(client.base_url).replace("/v1/", "")
    assert client._client.get(f"{url}/metrics").status_code == 401
    assert client._client.get(f"{url}/health").json() == {"status": "ok", "model": "tiny"}


def test_metrics_count_what_happened(endless):
    client, _ = endless
    chat(client, max_tokens=7)
    url = str(client.base_url).replace("/v1/", "")
    text = client._client.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}).text
    assert 'stackloom_requests_total{path="/v1/chat/completions",status="200"}' in text
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(found["stackloom_generated_tokens_total"]) >= 7
    assert "stackloom_running_sequences" in found
