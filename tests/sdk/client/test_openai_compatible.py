"""The client against a server on the loopback that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from stackloom.client.openai_compatible import OpenAICompatible
from stackloom.client.transport import make_http
from stackloom.core.chat import Message, Tool, ToolCall
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatRequest, ContextFull, Delta, Reply, Sampling, ServerError
from stackloom.testing.fake_server import Answer, FakeServer, event

ASK = ChatRequest((Message("user", "6 * 7?"),), sampling=Sampling(temperature=1.0, seed=5, max_tokens=9, stop=("x",)))
END = event(finish="stop") + b"data: [DONE]\n\n"


def call(answer, request=ASK, *, count=1, **options):
    """Make calls together against one server; return the pieces of each, or what it raised, and the server."""
    respond = answer if callable(answer) else lambda number, body: answer

    async def run():
        async with FakeServer(respond) as server, OpenAICompatible(server.url, "m", **options) as model:

            async def one():
                return [piece async for piece in model.stream(request)]

            made = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
        return made, server

    return asyncio.run(run())


def raises(answer, **options):
    (made,), server = call(answer, **options)
    assert isinstance(made, Exception)
    return made, server


def test_reply_is_streamed_and_counted_as_the_server_counts():
    (pieces,), server = call(Answer())
    assert "".join(piece.text for piece in pieces[:-1]) == "The answer is 42."
    assert pieces[-1] == Reply(Message("assistant", "The answer is 42."), "", "stop", 4, 7)
    (body,) = server.requests
    assert (body["seed"], body["temperature"], body["max_tokens"], body["stop"], body["stream"]) == (
        5,
        1.0,
        9,
        ["x"],
        True,
    )
    assert body["messages"] == [{"role": "user", "content": "6 * 7?"}]


@pytest.mark.parametrize(
    "raw",
    [
        event({"reasoning_content": "6*7"}) + event({"content": "42"}) + END,
        event({"reasoning": "6*7"}) + event({"content": "42"}) + END,
        event({"content": "<think>6*7</think>42"}) + END,
        event({"content": "6*7</think>42"}) + END,
        event({"content": "<longcat_th"}) + event({"content": "ink>6*7</longcat_think>42"}) + END,
    ],
)
@pytest.mark.parametrize("size", [1, 13, 0])
def test_reasoning_is_split_in_every_spelling(raw, size):
    (pieces,), _ = call(Answer(raw=raw, pieces=size))
    assert (pieces[-1].message.content, pieces[-1].reasoning) == ("42", "6*7")


def test_tool_calls_come_in_pieces():
    first = {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"a": '}}
    raw = event({"tool_calls": [first]}) + event({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
    (pieces,), server = call(
        Answer(raw=raw + event(finish="tool_calls")), ChatRequest(ASK.messages, (Tool("add", "Add"),))
    )
    assert pieces[-1].message.tool_calls == (ToolCall("add", {"a": 1}, "a"),)
    assert pieces[-1].finish == "tool_calls"
    assert server.requests[0]["tools"][0]["function"]["name"] == "add"


def test_a_malformed_call_is_the_models_mistake():
    raw = event({"tool_calls": [{"index": 0, "function": {"name": "add", "arguments": "{"}}]})
    (pieces,), _ = call(Answer(raw=raw + event(finish="tool_calls")))
    assert (pieces[-1].message.tool_calls, pieces[-1].finish) == ((), "stop")
    assert "no JSON object" in pieces[-1].errors[0]


def test_sampling_options_are_sent_where_they_are_not_neutral():
    _, server = call(Answer())
    assert {"top_k", "min_p", "presence_penalty", "repetition_penalty", "response_format"}.isdisjoint(
        server.requests[0]
    )
    sampling = Sampling(top_k=5, min_p=0.1, repetition_penalty=1.2, json_schema='{"type": "object"}')
    _, server = call(Answer(), ChatRequest(ASK.messages, sampling=sampling))
    body = server.requests[0]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (5, 0.1, 1.2)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_log_probabilities_are_read_and_never_infinite():
    top = [{"token": "4", "logprob": -0.1}, {"token": "5", "logprob": None}]
    raw = (
        b"data: "
        + json.dumps(
            {
                "choices": [
                    {"delta": {"content": "4"}, "logprobs": {"content": [{"logprob": -0.1, "top_logprobs": top}]}}
                ]
            }
        ).encode()
    )
    (pieces,), server = call(Answer(raw=raw + b"\n\n" + END), ChatRequest(ASK.messages, top_logprobs=30))
    assert pieces[0] == Delta("4", "", 1, (-0.1,), ((-0.1, -9999.0),))
    assert server.requests[0]["top_logprobs"] == 20
    with pytest.raises(ConfigError, match="log-probabilities"):
        raise raises(Answer(), request=ChatRequest(ASK.messages, top_logprobs=1), top_logprobs=0)[0]


@pytest.mark.parametrize("fault", ["reset", "junk", "error", "empty", "cut"])
def test_what_fails_after_the_first_byte_is_an_error_and_not_made_again(fault):
    if fault == "empty":  # a reply without a word, properly ended: the reasoner's business
        (pieces,), _ = call(Answer(fault="empty"))
        assert pieces[-1].message.content == ""
        return
    error, server = raises(Answer(fault=fault))
    assert isinstance(error, ServerError)
    assert server.url in error.where
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["refuse", "busy"])
def test_what_fails_before_the_first_byte_is_made_again(fault):
    (pieces,), server = call(lambda number, body: Answer(fault=fault if number < 2 else ""))
    assert pieces[-1].message.content == "The answer is 42."
    assert len(server.requests) == 3
    error, server = raises(Answer(fault=fault), retries=1)
    assert "2 times" in error.reason
    assert len(server.requests) == 2


def test_retry_after_is_obeyed():
    start = time.monotonic()
    call(lambda number, body: Answer(status=429, headers={"retry-after": "0.6"}) if number == 0 else Answer())
    assert time.monotonic() - start >= 0.6


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, "This model's maximum context length is 2048 tokens", ContextFull),
        (400, "bad temperature", ConfigError),
        (401, "", ConfigError),
        (404, "no such model", ConfigError),
        (501, "", ServerError),
    ],
)
def test_refusals_say_who_should_act_and_are_not_made_again(status, body, kind):
    error, server = raises(Answer(status=status, body=body))
    assert type(error) is kind
    assert len(server.requests) == 1


def test_calls_go_to_the_server_with_the_fewest():
    async def run():
        slow = lambda number, body: Answer(seconds=0.02)  # noqa: E731
        async with FakeServer(slow) as one, FakeServer(slow) as two, OpenAICompatible([one.url, two.url], "m") as model:

            async def ask():
                return [piece async for piece in model.stream(ASK)][-1]

            await asyncio.gather(*(ask() for _ in range(10)))
            return len(one.requests), len(two.requests)

    assert asyncio.run(run()) == (5, 5)


def test_a_server_that_is_down_is_avoided():
    async def run():
        async with FakeServer(lambda number, body: Answer()) as up:
            async with OpenAICompatible(["http://127.0.0.1:9/v1", up.url], "m") as model:
                for _ in range(4):
                    made = [piece async for piece in model.stream(ASK)]
                    assert made[-1].message.content
            return len(up.requests)

    assert asyncio.run(run()) == 4


def test_model_name_is_asked_for_where_none_is_given():
    async def run():
        async with FakeServer(lambda number, body: Answer()) as server, OpenAICompatible(server.url) as model:
            assert [piece async for piece in model.stream(ASK)]
            return server.requests[0]["model"]

    assert asyncio.run(run()) == "fake"


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_breaking_off_closes_the_connection(how):
    """How fast is measured by `stackloom bench client`."""

    async def run():
        async with FakeServer(lambda number, body: Answer(words=("w ",) * 999, seconds=0.01)) as server:
            async with OpenAICompatible(server.url, "m") as model:
                stream = model.stream(ASK)
                await anext(stream)
                if how == "close":
                    await stream.aclose()
                else:
                    reading = asyncio.create_task(anext(stream))
                    await asyncio.sleep(0)
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                async with asyncio.timeout(10):
                    while server.open:
                        await asyncio.sleep(0.001)
                assert server.aborted == 1
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_prompt_of_10_mb_arrives_whole():
    (pieces,), server = call(Answer(), ChatRequest((Message("user", "é" * 5_000_000),)))
    assert pieces[-1].message.content
    assert len(server.requests[0]["messages"][0]["content"]) == 5_000_000


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a/v1", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigError):
        OpenAICompatible(url, "m")
    with pytest.raises(ConfigError, match="no server"):
        OpenAICompatible([], "m")


def test_unknown_http_implementation_is_refused():
    with pytest.raises(ConfigError, match="httpx2"):
        make_http("requests")
