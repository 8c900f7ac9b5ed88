"""Pairs: every two plugins meet once, what does not go together says why and is not asked again."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as some

from stackloom.pairs import BASELINE, PairRow, by_pair, combinations, compose
from stackloom.stack import Stack

SLOTS = some.dictionaries(
    some.sampled_from(["a", "b", "c", "d", "e"]), some.integers(1, 4).map(range), min_size=2, max_size=5
).map(lambda sizes: {slot: [f"{slot}.{number}" for number in numbers] for slot, numbers in sizes.items()})


def pairs_of(plugins: dict[str, list[str]]) -> set[frozenset[str]]:
    return {
        frozenset(pair)
        for one, two in itertools.combinations(plugins, 2)
        for pair in itertools.product(plugins[one], plugins[two])
    }


@given(SLOTS)
def test_every_two_plugins_of_different_slots_meet_and_each_pair_is_new_once(plugins: dict[str, list[str]]) -> None:
    news = [new for _, new in combinations(plugins, set())]
    assert set().union(*news) == pairs_of(plugins)
    assert sum(map(len, news)) == len(pairs_of(plugins))


@given(SLOTS, some.randoms())
def test_picks_hold_no_pair_that_is_known_to_clash_beyond_the_one_they_ask_about(plugins, random) -> None:
    apart = set(random.sample(sorted(pairs_of(plugins), key=sorted), k=1))
    for picks, new in combinations(plugins, apart):
        met = {frozenset(pair) for pair in itertools.combinations(picks.values(), 2)}
        assert not met & apart or met & apart <= new


def test_a_pair_that_ran_once_has_run_whatever_failed_later() -> None:
    def row(outcome: str, date: str) -> PairRow:
        return PairRow(
            plugins=("a.x", "b.x"), outcome=outcome, stack={}, seconds=0, device="cpu", versions={}, date=date
        )

    assert by_pair([row("ran", "2026-01-01"), row("failed", "2026-02-01")])[frozenset({"a.x", "b.x"})].outcome == "ran"


def test_a_stack_of_picks_names_each_once_and_fills_the_rest_from_the_baseline() -> None:
    picks = {"optimizer": "optimizer.muon", "reasoner": "reasoner.single", "attention": "attention.kda"}
    data = compose(picks, {"model.hf": {"checkpoint": "qwen3-4b"}}, {"model.hf": ["attention"]})
    assert data["model"] == {"use": "model.hf", "checkpoint": "qwen3-4b", "attention": {"use": "attention.kda"}}
    train, evaluate = (stage[kind] for stage, kind in zip(data["stages"], ("train", "evaluate"), strict=True))
    assert train["optimizer"] == {"use": "optimizer.muon"}
    assert train["data"] == {"use": BASELINE["data"]}
    assert evaluate["environment"] == {"use": BASELINE["environment"]}
    used = [part.plugin for part in Stack.from_yaml(str(data)).plan(device="h100").components()]
    assert set(picks.values()) <= set(used)
