"""`context.none`, `discard`, `summary` and `hybrid`: the slot's laws, and when each cuts."""

import asyncio
from typing import ClassVar

import pytest

from stackloom.core.chat import Message
from stackloom.core.devices import find_device
from stackloom.core.fit import FitContext
from stackloom.core.generation import Sampling
from stackloom.core.slots.context import Cut
from stackloom.environments.agent_loop import play_chat
from stackloom.plugins.context.searcher import Searcher, known, words
from stackloom.testing import ByteChat, ContextContract, build, tiny_shape


class TestNone(ContextContract):
    plugin = "context.none"


class TestDiscard(ContextContract):
    plugin = "context.discard"
    tight: ClassVar = {"tokens": 1200}


class TestDiscardByTurns(ContextContract):
    plugin = "context.discard"
    tight: ClassVar = {"turns": 3}


class TestSummary(ContextContract):
    plugin = "context.summary"
    tight: ClassVar = {"tokens": 1200}


class TestHybrid(ContextContract):
    plugin = "context.hybrid"
    tight: ClassVar = {"tokens": 1200, "turns": 5}


RESTART = Cut((), restart=True)


@pytest.mark.parametrize(
    ("kit", "tokens", "turns", "cut"),
    [
        (TestNone, 10**9, 10**9, None),
        (TestDiscard, 1200, 10**9, None),
        (TestDiscard, 1201, 1, RESTART),
        (TestDiscardByTurns, 1, 3, None),
        (TestDiscardByTurns, 1, 4, RESTART),
        (TestSummary, 1200, 10**9, None),
        (TestHybrid, 1201, 6, RESTART),
        (TestHybrid, 1200, 5, None),
    ],
)
def test_bounds_are_the_last_values_that_are_left_alone(kit, tokens, turns, cut):
    assert kit.decide("notes", tokens, turns, **kit.tight)[0] == cut


@pytest.mark.parametrize("kit", [TestSummary, TestHybrid])
def test_notes_stand_behind_the_question_and_turns_go_on(kit):
    cut, asked = kit.decide("40 so far", 1201, 2, **kit.tight)
    assert asked == 1
    assert cut is not None
    assert not cut.restart
    assert [message.role for message in cut.messages] == ["user"]
    assert cut.messages[0].content.endswith("40 so far")


def test_a_summary_is_a_segment_and_the_model_reads_it_again():
    made, agent = TestSummary.attempt(8)
    asked = [request for request in agent.requests if request.key.endswith("/summary")]
    assert len(asked) == len(made.earlier) > 0
    after = agent.requests[agent.requests.index(asked[0]) + 1]
    assert "So far: 40." in ByteChat().tokenizer.decode(list(after.input_ids))
    assert len(after.input_ids) < 1200
    assert made.earlier[0].token_ids[: len(asked[0].input_ids)] == asked[0].input_ids


def test_an_attempt_that_is_never_cut_is_the_same_under_every_context():
    made = [kit.attempt(2)[0] for kit in (TestNone, TestDiscard, TestSummary, TestHybrid)]
    assert made[0].earlier == ()
    assert all(other == made[0] for other in made)


def test_a_summary_that_is_cut_off_begins_anew():
    made, _ = TestSummary.attempt(8, notes="n" * 1000)  # a message has 400 tokens
    assert made.earlier
    assert made.finish == "answered"
    assert "n" * 50 not in ByteChat().tokenizer.decode(list(made.token_ids))


def test_a_threshold_beyond_the_model_is_told():
    context = FitContext(model=tiny_shape(), device=find_device("cpu"), dtype="float32", stage="evaluate")
    far = TestHybrid.config(tokens=tiny_shape().max_positions)
    assert far.fit(context).severity == "warning"
    assert TestHybrid.config(tokens=tiny_shape().max_positions - 1).fit(context).severity == "info"


def attempt(policy, options, **agent):
    world = build("environment.search-world", fewest=25, most=25)
    task = world.tasks("held-out", 1)[0]
    episode = world.start(task)
    searcher = Searcher(2000, **agent)
    context = build(f"context.{policy}", **options)
    made = asyncio.run(play_chat(task, episode, searcher, sampling=Sampling(), turns=200, key=task.id, context=context))
    return made.finish, made.attempt(episode).reward.value


def test_only_notes_get_an_agent_through_more_than_it_can_hold():
    assert attempt("none", {}) == ("context", 0.0)
    assert attempt("discard", {"tokens": 1850}) == ("turns", 0.0)
    assert attempt("summary", {"tokens": 1500}) == ("answered", 1.0)
    assert attempt("hybrid", {"tokens": 1500}) == ("answered", 1.0)


def test_the_scripted_agent_knows_what_its_context_says():
    messages = (
        Message(
            "user", "Notes:\n- Silver Heron: 12\n- Golden Gull: not in the archive\n- Calm Wave: not in the archive"
        ),
        Message("tool", "Calm Wave, Selby Line, 1880: 7 crates. x\nSwift Star, Lomax Line, 1880: 9 crates. y"),
    )
    found, gone = known(messages, "Selby", ["Silver Heron", "Golden Gull", "Calm Wave", "Swift Star"])
    assert found == {"Silver Heron": 12, "Calm Wave": 7}
    assert gone == {"Golden Gull"}
    assert words(messages[0]) == 19
