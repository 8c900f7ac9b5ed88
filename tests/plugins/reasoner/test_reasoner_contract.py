"""Each law of the reasoner contract can fail: a reasoner broken on purpose is caught by the law for it."""

import asyncio
import dataclasses
import random

import pytest

from stackloom.core.slots.environment import Reward
from stackloom.core.slots.reasoner import Attempt, Solution
from stackloom.testing import ReasonerContract

CAUGHT = (AssertionError, pytest.fail.Exception)


async def three(attempt):
    return list(await asyncio.gather(*(attempt(index) for index in range(3))))


def best(attempts):
    return next((index for index, made in enumerate(attempts) if made.answer is not None), 0)


async def out_of_range(attempt):
    return Solution(3, await three(attempt))


async def hides_one(attempt):
    return Solution(0, (await three(attempt))[:2])


async def makes_one_up(attempt):
    return Solution(0, [*await three(attempt), Attempt("made up", (), 0, Reward(1.0))])


async def drawn(attempt):
    return Solution(random.randrange(3), await three(attempt))


async def quickest(attempt):
    running = [asyncio.ensure_future(attempt(index)) for index in range(3)]
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    first = next(index for index, one in enumerate(running) if one in done)
    return Solution(first, await asyncio.gather(*running))


async def peeks(attempt):
    attempts = await three(attempt)
    return Solution(2 if attempts[0].reward.value else best(attempts), attempts)


async def last(attempt):
    return Solution(2, await three(attempt))


async def swallows(attempt):
    made = await asyncio.gather(*(attempt(index) for index in range(3)), return_exceptions=True)
    return Solution(0, made)


async def wraps(attempt):
    try:
        return Solution(0, await three(attempt))
    except RuntimeError as cause:
        raise RuntimeError("something failed") from cause


async def abandons(attempt):
    running = [asyncio.ensure_future(attempt(index)) for index in range(3)]
    return Solution(0, [await one for one in running])


async def one_by_one(attempt):
    attempts = [await attempt(index) for index in range(3)]
    return Solution(best(attempts), attempts)


async def rewrites(attempt):
    attempts = await three(attempt)
    object.__setattr__(attempts[0], "answer", "mine")
    return Solution(0, [dataclasses.replace(made) for made in attempts])


class Remembers:
    """Chooses by how many tasks it has seen."""

    seen = 0

    async def solve(self, attempt):
        attempts = await three(attempt)
        self.seen += 1
        return Solution(min(self.seen, 2), attempts)


@pytest.mark.parametrize(
    ("solve", "part"),
    [
        (out_of_range, "choice_is_one_of_the_attempts"),
        (hides_one, "every_attempt_is_counted"),
        (makes_one_up, "every_attempt_is_counted"),
        (rewrites, "every_attempt_is_counted"),
        (drawn, "choice_is_the_same_each_time"),
        (quickest, "choice_is_the_same_each_time"),
        (peeks, "reward_is_not_looked_at"),
        (last, "attempt_without_an_answer"),
        (swallows, "error_of_an_attempt"),
        (wraps, "error_of_an_attempt"),
        (abandons, "no_attempt_outlives"),
        (one_by_one, "parallel_feature"),
        (Remembers().solve, "one_object_solves_many"),
    ],
)
def test_law_catches(solve, part):
    reasoner = type("Reasoner", (), {"solve": staticmethod(solve)})
    contract = type(
        "Mutant",
        (ReasonerContract,),
        {"plugin": "reasoner.self-consistency", "component": staticmethod(lambda **changes: reasoner())},
    )
    (law,) = [name for name in dir(contract) if name.startswith("test_") and part in name]
    with pytest.raises(CAUGHT):
        getattr(contract(), law)()
