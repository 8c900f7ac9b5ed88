"""Votes: answers into classes, the class that wins, and rules that tell before the end who will."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Ties: TypeAlias = Literal["first", "shortest", "longest", "random"]
StopRule: TypeAlias = Literal["none", "exact", "bayesian", "window"]


@dataclass(frozen=True)
class Ballot:
    """One voter.

    Attributes:
        number: its place among all voters.
        answer: None abstains.
        tokens: what it wrote.
        weight: what its vote counts.
    """

    number: int
    answer: str | None
    tokens: int = 0
    weight: float = 1.0


@dataclass
class Class:
    """Voters with equal answers.

    Attributes:
        answer: as the first of them wrote it.
        members: in the order of their numbers.
    """

    answer: str
    members: list[Ballot] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """Sum of the votes."""
        return math.fsum(member.weight for member in self.members)


def classes(ballots: Sequence[Ballot], equal: Callable[[str, str], bool] = str.__eq__) -> list[Class]:
    """Sort ballots into classes; the result does not depend on their order, and abstentions are in none."""
    found: list[Class] = []
    for ballot in sorted(ballots, key=lambda ballot: ballot.number):
        if ballot.answer is None:
            continue
        home = next((one for one in found if equal(one.answer, ballot.answer)), None)
        if home is None:
            found.append(home := Class(ballot.answer))
        home.members.append(ballot)
    return found


def tally(ballots: Sequence[Ballot], equal: Callable[[str, str], bool] = str.__eq__) -> dict[str, int]:
    """Return each answer's number of votes, most first."""
    found = sorted(classes(ballots, equal), key=lambda one: (-len(one.members), one.members[0].number))
    return {one.answer: len(one.members) for one in found}


def winner(
    ballots: Sequence[Ballot],
    *,
    ties: Ties = "first",
    seed: int = 0,
    equal: Callable[[str, str], bool] = str.__eq__,
) -> Ballot | None:
    """Return the ballot that stands for the class with the largest weight; None where nobody votes.

    Args:
        ballots: in any order.
        ties: which ballot of the classes that share the largest weight: the one with the lowest number, the fewest or
            most tokens, or one drawn with `seed`.

    Example:
        >>> winner([Ballot(0, "7", 5), Ballot(1, "42", 9), Ballot(2, "42", 3)], ties="shortest").number
        2
    """
    found = classes(ballots, equal)
    if not found:
        return None
    most = max(one.weight for one in found)
    leading = [member for one in found if math.isclose(one.weight, most, rel_tol=1e-12) for member in one.members]
    if ties == "random":
        return random.Random(seed).choice(sorted(leading, key=lambda ballot: ballot.number))
    sign = {"first": 0, "shortest": 1, "longest": -1}[ties]
    return min(leading, key=lambda ballot: (sign * ballot.tokens, ballot.number))


def decided(ballots: Sequence[Ballot], width: int, ties: Ties = "first", *, equal: Callable[[str, str], bool]) -> bool:
    """Exact stop: whether no vote that is still out can change which class wins (page, section 2.6).

    Args:
        ballots: of those that have ended, abstentions included.
        width: of all.
    """
    found = sorted(classes(ballots, equal), key=lambda one: -len(one.members))
    out = width - len(ballots)
    if not found:
        return out == 0
    lead = len(found[0].members) - (len(found[1].members) if len(found) > 1 else 0)
    if lead > out:
        return True
    if lead < out or ties != "first":
        return False
    # A tie is possible and goes to the lowest number: the leader must hold it against every class that can catch up.
    waiting = set(range(width)) - {ballot.number for ballot in ballots}
    rivals = [one.members[0].number for one in found[1:] if len(found[0].members) - len(one.members) <= out]
    return found[0].members[0].number < min([*rivals, *waiting], default=width)


def half_beta(leader: int, runner_up: int) -> float:
    """P(theta > 1/2) for theta ~ Beta(leader + 1, runner_up + 1), exactly: a binomial sum.

    Example:
        >>> half_beta(4, 0)
        0.96875
    """
    count = leader + runner_up + 1
    return sum(math.comb(count, j) for j in range(leader + 1)) / 2**count


def believed(ballots: Sequence[Ballot], threshold: float, *, equal: Callable[[str, str], bool]) -> bool:
    """Bayesian stop of Adaptive-Consistency: the leader beats the runner-up with at least this probability."""
    counts = [*sorted((len(one.members) for one in classes(ballots, equal)), reverse=True), 0]
    return len(counts) > 1 and half_beta(counts[0], counts[1]) >= threshold


def settled(answers: Sequence[str | None], window: int, *, equal: Callable[[str, str], bool]) -> bool:
    """Window stop of ESC: the last `window` answers, in the order of their ending, are equal."""
    last = answers[-window:]
    first = last[0] if last else None
    return len(last) == window and first is not None and all(one is not None and equal(first, one) for one in last)


def majority_accuracy(p: float, width: int) -> float:
    """Accuracy of a vote of `width` (odd) voters that are right with probability p, where wrong ones agree."""
    return sum(math.comb(width, j) * p**j * (1 - p) ** (width - j) for j in range(width // 2 + 1, width + 1))


def pass_at(total: int, right: int, k: int) -> float:
    """Unbiased estimate of pass@k from `right` right attempts of `total`: 1 - C(n - c, k) / C(n, k)."""
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def exact_stop_calls(p: Mapping[str, float] | float, width: int) -> float:
    """Expected number of calls of the exact stop with two answers, one at a time, ties to nobody.

    Args:
        p: probability of the one answer.
        width: odd, so that there is no tie.
    """
    q, need = (p if isinstance(p, float) else max(p.values())), width // 2 + 1
    return sum(
        calls
        * math.comb(calls - 1, need - 1)
        * (q**need * (1 - q) ** (calls - need) + (1 - q) ** need * q ** (calls - need))
        for calls in range(need, width + 1)
    )
