"""The vote and the rules that end it early, against their closed forms."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.plugins.reasoner import votes
from stackloom.plugins.reasoner.votes import Ballot, decided, half_beta, settled, tally, winner

ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=9)
TIES = ("first", "shortest", "longest", "random")


def cast(answers) -> list[Ballot]:
    return [Ballot(number, answer, 5 + number * 7 % 4) for number, answer in enumerate(answers)]


@given(ANSWERS, st.randoms(use_true_random=False), st.sampled_from(TIES))
def test_order_of_the_ballots_does_not_matter(answers, rng, ties):
    given_, mixed = cast(answers), cast(answers)
    rng.shuffle(mixed)
    assert winner(given_, ties=ties) == winner(mixed, ties=ties)
    assert tally(given_) == tally(mixed)


@given(ANSWERS, st.randoms(use_true_random=False), st.sampled_from(TIES))
def test_exact_stop_never_changes_the_winning_class(answers, rng, ties):
    """Property of the page's section 6, invariant 5, for every tie rule and every order of ending."""
    every = cast(answers)
    order = every[:]
    rng.shuffle(order)
    whole = winner(every, ties=ties, seed=3)
    for done in range(len(order) + 1):
        if decided(order[:done], len(every), ties, equal=str.__eq__):
            early = winner(order[:done], ties=ties, seed=3)
            assert (early and early.answer) == (whole and whole.answer)
            break


@pytest.mark.parametrize(
    ("counts", "belief", "stops"),
    [((3, 0), 0.9375, False), ((4, 0), 0.96875, True), ((5, 1), 0.9375, False), ((6, 1), 0.96484375, True)],
)
def test_bayesian_stop_has_the_papers_values(counts, belief, stops):
    assert half_beta(*counts) == belief
    given_ = cast(["a"] * counts[0] + ["b"] * counts[1])
    assert votes.believed(given_, 0.95, equal=str.__eq__) is stops


def test_window_stop_looks_at_the_last_answers_alone():
    assert settled(["1", "2", "2", "2"], 3, equal=str.__eq__)
    assert not settled(["2", "2", "1", "2"], 3, equal=str.__eq__)
    assert not settled(["2", "2"], 3, equal=str.__eq__)
    assert not settled([None, None, None], 3, equal=str.__eq__)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_closed_forms_equal_full_enumeration(width):
    p = 0.6
    right = calls = 0.0
    for outcome in itertools.product((True, False), repeat=width):
        chance = p ** sum(outcome) * (1 - p) ** (width - sum(outcome))
        given_ = cast([str(one) for one in outcome])
        right += chance * (winner(given_).answer == "True")
        done = next(n for n in range(width + 1) if decided(given_[:n], width, "shortest", equal=str.__eq__))
        calls += chance * done
    assert right == pytest.approx(votes.majority_accuracy(p, width), rel=1e-12)
    assert calls == pytest.approx(votes.exact_stop_calls(p, width), rel=1e-12)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one():
    right = [True, False, True, False, False, False]
    share = [any(subset) for subset in itertools.combinations(right, 3)]
    assert votes.pass_at(6, 2, 3) == pytest.approx(sum(share) / len(share), rel=1e-12)


def test_weights_decide_and_random_ties_follow_the_seed():
    assert winner([Ballot(0, "a", 1, 1.0), Ballot(1, "a", 1, 1.0), Ballot(2, "b", 1, 2.5)]).answer == "b"
    drawn = {winner(cast(["1", "2"]), ties="random", seed=seed).answer for seed in range(20)}
    assert drawn == {"1", "2"}
    assert winner(cast(["1", "2"]), ties="random", seed=random.Random(5).randrange(9)) is not None
