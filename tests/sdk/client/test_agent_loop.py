"""The agent loop plays a world through an OpenAI-compatible server."""

import asyncio

import pytest

from stackloom.client.openai_compatible import OpenAICompatible
from stackloom.core.generation import Sampling, ServerError
from stackloom.environments.agent_loop import play_chat
from stackloom.environments.users import ModelUser
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig
from stackloom.testing.fake_server import Answer, FakeServer, event


def test_a_world_is_played_through_a_server():
    environment = DomainGraphConfig(tools=4, low=2, high=3).build()
    task = environment.tasks("train", 1)[0]
    shown = environment.demonstration(task)
    said = [message.to_openai() for message in shown if message.role == "assistant"]
    episode = environment.start(task)

    def answer(number, body):
        calls = [call | {"index": place} for place, call in enumerate(said[number].get("tool_calls", ()))]
        delta = {"content": said[number]["content"], "tool_calls": calls}
        return Answer(raw=event(delta) + event(finish="tool_calls" if calls else "stop"))

    async def attempt():
        async with FakeServer(answer) as server, OpenAICompatible(server.url, "small") as model:
            return await play_chat(task, episode, model, sampling=Sampling(), turns=9, key="k"), server

    transcript, server = asyncio.run(attempt())
    assert transcript.finish == "answered"
    assert [message.content for message in transcript.messages] == [message.content for message in shown]
    assert transcript.attempt(episode).reward.value == 1.0
    assert len(server.requests[0]["tools"]) == 4


def test_agent_and_user_are_both_played_by_models_behind_a_server():
    environment = DomainGraphConfig(tools=4, low=2, high=3, withheld=1.0).build()
    task = next(task for task in environment.tasks("train", 40) if environment.built(task).request.withheld)
    built, shown = environment.built(task), environment.demonstration(task)
    said = [message.to_openai() for message in shown if message.role == "assistant"]
    told = [message.content for message in shown if message.role == "user"]
    asked = []

    def answer(number, body):
        if body["model"] == "user":
            asked.append(body["messages"])
            text = told[len(asked) - 1] if len(asked) <= len(told) else "[DONE]"
            return Answer(raw=event({"content": text}) + event(finish="stop"))
        place = sum(message["role"] == "assistant" for message in body["messages"])
        calls = [call | {"index": place} for place, call in enumerate(said[place].get("tool_calls", ()))]
        delta = {"content": said[place]["content"], "tool_calls": calls}
        return Answer(raw=event(delta) + event(finish="tool_calls" if calls else "stop"))

    async def attempt():
        async with (
            FakeServer(answer) as server,
            OpenAICompatible(server.url, "agent") as agent,
            OpenAICompatible(server.url, "user") as person,
        ):
            user = ModelUser(person, built.request, sampling=Sampling(), key="u")
            episode = environment.start(task)
            transcript = await play_chat(task, episode, agent, sampling=Sampling(), turns=9, key="k", user=user)
            return transcript.attempt(episode).reward, transcript

    reward, transcript = asyncio.run(attempt())
    assert [message.content for message in transcript.messages] == [message.content for message in shown]
    assert reward.value == 1.0
    assert all(known.text in asked[0][0]["content"] for known in built.request.withheld)  # the user's model knows


def test_a_server_that_is_not_there_is_nobodys_wrong_answer():
    environment = DomainGraphConfig(tools=4, low=2, high=3).build()
    task = environment.tasks("train", 1)[0]

    async def attempt():
        async with OpenAICompatible("http://127.0.0.1:9/v1", "small", retries=0) as model:
            await play_chat(task, environment.start(task), model, sampling=Sampling(), turns=2, key="k")

    with pytest.raises(ServerError):
        asyncio.run(attempt())
