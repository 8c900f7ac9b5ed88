"""`reasoner.self-consistency`: the slot's laws, and the vote."""

import asyncio
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.devices import find_device
from stackloom.core.fit import FitContext
from stackloom.core.slots.environment import Reward
from stackloom.core.slots.reasoner import Attempt
from stackloom.plugins.reasoner.self_consistency.config import SelfConsistencyConfig
from stackloom.testing import ReasonerContract, tiny_shape


class TestDefaults(ReasonerContract):
    plugin = "reasoner.self-consistency"


class TestWideAndShortest(ReasonerContract):
    plugin = "reasoner.self-consistency"
    options: ClassVar = {"width": 7, "ties": "shortest"}


class TestAlone(ReasonerContract):
    plugin = "reasoner.self-consistency"
    options: ClassVar = {"width": 1, "ties": "longest"}


def vote(answers, tokens=None, ties="first"):
    tokens = tokens or [1] * len(answers)

    async def attempt(index):
        return Attempt(answers[index], (), tokens[index], Reward(0.0))

    return asyncio.run(SelfConsistencyConfig(width=len(answers), ties=ties).build().solve(attempt)).chosen


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (["7", "42", "42"], 1),
        (["7", None, None], 0),
        ([None, "7", None], 1),
        ([None, None], 0),
        (["", "1", "1", ""], 0),
        (["1", "2", "2", "1"], 0),
    ],
)
def test_most_frequent_answer_wins_and_no_answer_does_not_vote(answers, chosen):
    assert vote(answers) == chosen


def test_empty_answer_is_an_answer_and_none_is_not():
    assert vote([None, "", None]) == 1


@pytest.mark.parametrize(("ties", "chosen"), [("first", 0), ("shortest", 3), ("longest", 2)])
def test_ties_go_by_the_option(ties, chosen):
    assert vote(["a", "b", "a", "b", "c"], [5, 6, 9, 2, 1], ties) == chosen


@given(
    st.lists(st.tuples(st.none() | st.sampled_from("abc"), st.integers(0, 5)), min_size=1, max_size=9),
    st.sampled_from(("first", "shortest", "longest")),
)
def test_no_answer_has_more_votes_than_the_chosen_one(made, ties):
    answers, tokens = zip(*made, strict=True)
    chosen = vote(list(answers), list(tokens), ties)
    votes = Counter(answer for answer in answers if answer is not None)
    assert (votes[answers[chosen]] == max(votes.values())) if votes else chosen == 0


@pytest.mark.parametrize(("temperature", "width", "warned"), [(0.0, 4, True), (0.7, 4, False), (0.0, 1, False)])
def test_plan_warns_where_all_attempts_would_be_the_same(temperature, width, warned):
    context = FitContext(
        model=tiny_shape(),
        device=find_device("cpu"),
        dtype="float32",
        stage="evaluate",
        stage_options={"temperature": temperature},
    )
    fit = SelfConsistencyConfig(width=width).fit(context)
    assert fit.ok
    assert (fit.severity == "warning") == warned
