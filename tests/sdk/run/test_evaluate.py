from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.run.evaluate import mean_interval, paired_difference, pass_rate


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_a_pass_rate_lies_in_its_interval_and_the_interval_in_zero_to_one(passed: list[bool]) -> None:
    found = pass_rate(passed)
    low, high = found["interval"]
    assert 0 <= low <= found["value"] + 1e-12
    assert found["value"] - 1e-12 <= high <= 1


@pytest.mark.parametrize(("passes", "count", "low", "high"), [
    # Wilson's interval at z = 1.959964, computed with scipy.stats.binomtest(...).proportion_ci(method="wilson")
    (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (5, 10, 0.236593, 0.763407), (87, 200, 0.368157, 0.504293),
])  # fmt: skip
def test_the_interval_is_wilson_s(passes: int, count: int, low: float, high: float) -> None:
    found = pass_rate([True] * passes + [False] * (count - passes))
    assert found["interval"] == pytest.approx([low, high], abs=2e-6)


def test_nothing_attempted_is_no_zero() -> None:
    assert pass_rate([]) == {"value": None, "interval": None, "count": 0}


def tasks(outcomes: dict[str, bool], valid: bool = True) -> dict[str, dict[str, object]]:
    return {name: {"kind": "k", "passed": passed, "valid": valid} for name, passed in outcomes.items()}


def test_a_paired_difference_uses_the_shared_valid_tasks() -> None:
    first = tasks({"a": False, "b": False, "c": True, "only": True})
    second = tasks({"a": True, "b": False, "c": True}) | tasks({"only": False}, valid=False)
    found = paired_difference(first, second)
    assert found["count"] == 3
    assert found["value"] == pytest.approx(1 / 3)


def test_pairing_narrows_the_interval_when_tasks_differ_more_than_models() -> None:
    first = tasks({str(i): i % 2 == 0 for i in range(100)})
    second = tasks({str(i): i % 2 == 0 or i == 1 for i in range(100)})
    low, high = paired_difference(first, second)["interval"]
    assert high - low < 0.05


def test_equal_outcomes_differ_by_exactly_zero() -> None:
    same = tasks({str(i): i % 3 == 0 for i in range(30)})
    assert paired_difference(same, same) == {"value": 0.0, "interval": [0.0, 0.0], "count": 30}


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=50))
def test_a_mean_lies_in_its_interval(values: list[float]) -> None:
    found = mean_interval(values)
    low, high = found["interval"]
    assert low - 1e-9 <= math.fsum(values) / len(values) <= high + 1e-9
