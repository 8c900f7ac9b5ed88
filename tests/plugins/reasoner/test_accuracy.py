"""Accuracy over tokens: other reasoners on recorded attempts, and what the tables and curves hold."""

from __future__ import annotations

import pytest

from stackloom.core.claims import Curve, Table
from stackloom.plugins.reasoner.best_of_n.config import BestOfNConfig
from stackloom.plugins.reasoner.heavy_thinking import accuracy
from stackloom.plugins.reasoner.self_consistency.config import SelfConsistencyConfig

CONFIGS = {"reasoner.self-consistency": SelfConsistencyConfig, "reasoner.best-of-n": BestOfNConfig}


class Context:
    """Builds the two reasoners that recorded attempts are asked about."""

    def component(self, plugin, /, **options):
        return CONFIGS[plugin](**options).build()


def told(answer, *, right, tokens=10, logprob=-1.0):
    return {"answer": answer, "tokens": tokens, "value": float(right), "valid": True, "logprob": logprob}


MADE = {
    "vote is right": [told("7", right=True), told("8", right=False, logprob=-0.1), told("7", right=True)],
    "likelihood is right": [told("5", right=False), told("6", right=True, logprob=-0.2), told("5", right=False)],
    "none is right": [told("1", right=False), told(None, right=False), told("2", right=False)],
}
RECORDED = {task: [accuracy._attempt(each) for each in made] for task, made in MADE.items()}


def test_recorded_attempts_are_judged_as_new_ones_would_be():
    vote = accuracy._replayed(Context(), "reasoner.self-consistency", 3, RECORDED)
    best = accuracy._replayed(Context(), "reasoner.best-of-n", 3, RECORDED)
    assert (vote.passed, best.passed) == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    assert vote.tokens == best.tokens == 30
    assert accuracy._replayed(Context(), "reasoner.self-consistency", 1, RECORDED).tokens == 10
    single = accuracy._single(RECORDED)
    assert single.passed == pytest.approx((2 / 3, 1 / 3, 0.0))
    assert single.tokens == 10


def test_what_heavy_thinking_chose_is_read_with_all_its_tokens():
    found = {task: {"chosen": 3, "made": [*made, told("7", right=True, tokens=50)]} for task, made in MADE.items()}
    arm = accuracy._chosen(found)
    assert (arm.passed, arm.tokens, arm.share) == ((1.0, 1.0, 1.0), 80, 1.0)


def arms():
    vote, heavy = f"self-consistency {accuracy.WIDTH}", f"heavy [{accuracy.WIDTH}]"
    return {
        "single": accuracy.Arm((0.5, 0.25, 0.0, 0.0), 10),
        vote: accuracy.Arm((1.0, 1.0, 0.0, 0.0), 80),
        heavy: accuracy.Arm((1.0, 0.0, 1.0, 0.0), 90),
    }


def test_rates_count_the_tasks_that_they_are_about():
    details = accuracy.details({"a subject": arms()})
    tables = [Table.model_validate(table) for table in details["tables"]]
    assert tables[1].rows == (
        ("emergent correctness: right where no attempt is", 2, 0.5),
        ("regression: wrong where the vote is right", 2, 0.5),
    )
    assert tables[0].rows[-1][:2] == ("pass@8: any attempt right", 0.5)
    (curve,) = (Curve.model_validate(curve) for curve in details["curves"])
    assert curve.x == (10, 80, 90)
    assert curve.series["heavy"] == (None, None, 0.5)
    assert curve.series["vote"] == (0.1875, 0.5, None)


def test_a_gain_is_paired_by_task():
    found = accuracy.gain(arms(), f"heavy [{accuracy.WIDTH}]", f"self-consistency {accuracy.WIDTH}")
    assert found["value"] == 0.0
    low, high = found["interval"]
    assert low < 0 < high
