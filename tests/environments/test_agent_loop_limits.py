"""The agent loop's bounds on calls, and models behind chat endpoints."""

import asyncio
import time
from dataclasses import replace

import pytest

from stackloom.core.chat import Message, Tool, ToolCall, render_call
from stackloom.core.generation import ContextFull, Delta, Reply, Sampling, ServerError
from stackloom.core.slots.environment import Reward, Task, ToolError
from stackloom.environments.agent_loop import Limits, play, play_chat
from stackloom.testing import ByteChat, ScriptedGenerator

ECHO = Tool("echo", "say it", {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]})
TASK = Task("t", "k", (Message("user", "Go."),), (ECHO,))


class Echoes:
    def __init__(self, seconds=0.0):
        self.heard, self._seconds = [], seconds

    def call(self, call):
        time.sleep(self._seconds)
        if call.name != "echo":
            raise ToolError(f"no tool {call.name}")
        self.heard.append(call.arguments["text"])
        return f"<{call.arguments['text']}>"

    def reward(self, transcript):
        return Reward(float(transcript[-1].content == "done"))

    def answer(self, transcript):
        return transcript[-1].content


def calls(*texts):
    return "".join(render_call(ToolCall("echo", {"text": text})) for text in texts)


def attempt(script, episode, limits):
    chat = ByteChat()
    return asyncio.run(
        play(
            TASK,
            episode,
            ScriptedGenerator(script, chat),
            chat,
            sampling=Sampling(max_tokens=2000),
            turns=3,
            key="k",
            limits=limits,
        )
    )


def test_a_flood_of_calls_is_cut_and_the_agent_reads_so():
    episode = Echoes()
    transcript = attempt([calls("a", "b", "c"), "done"], episode, Limits(calls=2))
    assert episode.heard == ["a", "b"]
    assert "at most 2 calls" in transcript.messages[3].content
    assert transcript.attempt(episode).reward == Reward(1.0)


def test_a_call_that_hangs_masks_the_attempt():
    episode = Echoes(seconds=0.4)
    transcript = attempt([calls("a"), "done"], episode, Limits(seconds=0.05))
    assert transcript.finish == "failed"
    reward = transcript.attempt(episode).reward
    assert (reward.valid, reward.reason) == (False, "tool 'echo' took longer than 0.05 s")


def test_a_deadline_that_is_kept_changes_nothing():
    with_deadline, without = (attempt([calls("a"), "done"], Echoes(), Limits(seconds=s)) for s in (30.0, None))
    assert with_deadline == without


class Endpoint:
    """A `ChatModel` that says what it is told."""

    def __init__(self, *script):
        self._script, self.seen = list(script), []

    async def stream(self, request):
        self.seen.append(request)
        reply = self._script[len(self.seen) - 1]
        if isinstance(reply, Exception):
            raise reply
        yield Delta("some")
        if reply is not None:
            yield reply


def asked(model, turns=3, **options):
    episode = Echoes()
    sampling = Sampling(max_tokens=50)
    return asyncio.run(play_chat(TASK, episode, model, sampling=sampling, turns=turns, key="k", **options)), episode


def test_a_model_behind_a_chat_endpoint_plays_the_same_game():
    made = Message("assistant", "", (ToolCall("echo", {"text": "a"}, "id7"), ToolCall("echo", {"text": "b"}, "id8")))
    model = Endpoint(Reply(made, tokens=9), Reply(Message("assistant", "done"), tokens=2))
    transcript, episode = asked(model, tokens=40)
    assert (transcript.finish, episode.heard, transcript.token_ids) == ("answered", ["a", "b"], ())
    assert [message.tool_call_id for message in model.seen[1].messages[2:]] == ["id7", "id8"]
    assert [request.sampling.max_tokens for request in model.seen] == [40, 31]
    assert [request.key for request in model.seen] == ["k/0", "k/1"]
    assert transcript.attempt(episode).reward == Reward(1.0)


def test_cut_messages_full_contexts_and_malformed_calls_end_as_they_do_with_tokens():
    cut, _ = asked(Endpoint(Reply(Message("assistant", "do"), finish="length", tokens=50)))
    assert cut.finish == "tokens"
    full, _ = asked(Endpoint(ContextFull("no room")))
    assert full.finish == "context"
    with pytest.raises(ServerError, match="broke off"):
        asked(Endpoint(None))
    broken = Reply(Message("assistant", ""), tokens=3, errors=("arguments of 'echo' are no JSON object",))
    told, _ = asked(Endpoint(broken, Reply(Message("assistant", "done"), tokens=2)))
    assert told.messages[1] == Message("tool", "Error: arguments of 'echo' are no JSON object")
    spent, _ = asked(Endpoint(replace(broken, tokens=50), Reply(Message("assistant", "done"), tokens=2)), tokens=50)
    assert spent.finish == "tokens"
