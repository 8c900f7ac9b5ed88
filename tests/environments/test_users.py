"""Users: a script reveals on request, corrects and chats; a model plays the same part behind the same interface."""

import asyncio

import pytest

from stackloom.core.chat import Message
from stackloom.core.generation import Reply, Sampling
from stackloom.core.slots.environment import Reward, Task
from stackloom.environments.agent_loop import play
from stackloom.environments.chains import Known
from stackloom.environments.users import ALL_SAID, CHATTER, ModelUser, Script, ScriptedUser, opened
from stackloom.environments.wording import Request
from stackloom.testing import ByteChat, ScriptedGenerator

REASON = Known("order.reason", "too_small", "reason for the return", "too small")
DAY = Known("order.day", "2026-06-01", "new delivery date", "1 June")


def replies(script, *texts):
    """What a scripted user says to an agent's messages, one after the other."""
    user, said, found = ScriptedUser(script), [], []
    for text in texts:
        said.append(Message("assistant", text))
        reply = asyncio.run(user.reply(said))
        found.append(reply)
        if reply is not None:
            said.append(Message("user", reply))
    return found


def test_details_are_told_when_they_are_asked_for_and_once():
    script = Script(withheld=(REASON, DAY))
    assert replies(script, "Which date is it?", "And the reason?", "Anything else?") == [
        "The new delivery date is 1 June.",
        "The reason for the return is too small.",
        ALL_SAID,
    ]


def test_a_question_that_names_nothing_is_answered_with_the_next_detail():
    assert replies(Script(withheld=(REASON, DAY)), "What do you mean?") == ["The reason for the return is too small."]


def test_a_message_that_asks_nothing_ends_the_conversation():
    assert replies(Script(withheld=(REASON,)), "It is done.") == [None]


def test_a_wrong_detail_is_corrected_at_the_first_chance():
    script = Script(wrong=(DAY, "9 June"))
    request = Request("Move it to 1 June.", (DAY,))
    assert opened(request, script).startswith("Move it to 9 June. Please check")
    assert replies(script, "I will move it to 9 June.", "Done.") == [
        "Oh, I got that wrong: the new delivery date is 1 June, not 9 June.",
        None,
    ]


def test_chatter_is_added_and_repeats_exactly():
    script = Script(withheld=(DAY,), chats=True, seed="3")
    first, second = replies(script, "Which date?"), replies(script, "Which date?")
    assert first == second
    assert first[0].startswith("The new delivery date is 1 June. ")
    assert first[0].split("June. ")[1] in CHATTER


class ScriptedModel:
    context, top_logprobs = None, 0

    def __init__(self, *texts):
        self._texts, self.requests = list(texts), []

    async def stream(self, request):
        self.requests.append(request)
        yield Reply(Message("assistant", self._texts.pop(0)))


def test_a_model_plays_the_user_and_says_when_it_is_done():
    model = ScriptedModel("It is 1 June.", "Thanks! [DONE]")
    user = ModelUser(model, Request("Move it.", (DAY,)), sampling=Sampling(max_tokens=200), key="u")
    said = [Message("assistant", "Which date?")]
    assert asyncio.run(user.reply(said)) == "It is 1 June."
    said += [Message("user", "It is 1 June."), Message("assistant", "It is moved.")]
    assert asyncio.run(user.reply(said)) is None
    system, *heard = model.requests[1].messages
    assert "new delivery date: 1 June" in system.content
    assert heard == [
        Message("user", "Which date?"),
        Message("assistant", "It is 1 June."),
        Message("user", "It is moved."),  # the agent's words are what the user's model hears
    ]
    assert [request.key for request in model.requests] == ["u/1", "u/3"]


class Silent:
    def __init__(self, user=None):
        self.user = user

    def call(self, call):
        raise AssertionError(call)

    def reward(self, transcript):
        return Reward(float(transcript[-1].content == "Moved."))

    def answer(self, transcript):
        return None


@pytest.mark.parametrize("own", [True, False])
def test_the_agent_loop_talks_to_a_user_and_trains_on_the_agent_alone(own):
    chat, user = ByteChat(), ScriptedUser(Script(withheld=(DAY,)))
    task = Task("t", "k", (Message("user", "Move it."),))
    generator = ScriptedGenerator(["Which date?", "Moved."], chat)
    episode = Silent(user if own else None)
    transcript = asyncio.run(
        play(
            task,
            episode,
            generator,
            chat,
            sampling=Sampling(max_tokens=99),
            turns=4,
            key="k",
            user=None if own else user,
        )
    )
    assert transcript.finish == "answered"
    assert [message.role for message in transcript.messages] == ["assistant", "user", "assistant"]
    assert list(transcript.token_ids) == chat.render([*task.messages, *transcript.messages], reply=False)[:-1]
    trained = [token for token, kept in zip(transcript.token_ids, transcript.loss_mask, strict=True) if kept]
    assert chat.tokenizer.decode(trained) == "Which date?<|im_end|>Moved.<|im_end|>"
    assert transcript.attempt(episode).reward.value == 1.0


def test_a_user_who_goes_on_for_ever_is_bounded_by_the_turns():
    class Endless:
        async def reply(self, messages):
            return "And then?"

    chat = ByteChat()
    generator = ScriptedGenerator(["a", "b", "c"], chat)
    transcript = asyncio.run(
        play(
            Task("t", "k", (Message("user", "Go."),)),
            Silent(),
            generator,
            chat,
            sampling=Sampling(max_tokens=9),
            turns=3,
            key="k",
            user=Endless(),
        )
    )
    assert (transcript.finish, len(generator.requests)) == ("turns", 3)
