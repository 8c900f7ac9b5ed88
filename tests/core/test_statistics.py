from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.statistics import mean_interval, paired_bootstrap, paired_difference, pass_rate, student


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


@pytest.mark.parametrize(("freedom", "quantile"), [
    # scipy.stats.t.ppf(0.975, freedom)
    (1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157), (29, 2.045230), (1000, 1.962339),
])  # fmt: skip
def test_the_quantile_is_student_s(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=2e-3)


def test_student_s_interval_covers_the_mean_of_three_seeds_about_19_times_in_20() -> None:
    draw = random.Random(0)
    intervals = [mean_interval([draw.gauss(0, 1) for _ in range(3)])["interval"] for _ in range(2000)]
    covered = sum(low <= 0 <= high for low, high in intervals) / 2000
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_bootstrap_agrees_with_student_s_interval_on_many_normal_pairs() -> None:
    draw = random.Random(1)
    first = [draw.gauss(0, 5) for _ in range(400)]
    second = [value + draw.gauss(0.3, 1) for value in first]
    found = paired_bootstrap(first, second, resamples=2000)
    plain = mean_interval([after - before for before, after in zip(first, second, strict=True)])
    assert found["value"] == plain["value"]
    assert found["interval"] == pytest.approx(plain["interval"], abs=0.02)


def test_a_bootstrap_is_a_function_of_its_seed_and_refuses_unpaired_arms() -> None:
    values = [1.0, 2.0, 4.0], [1.5, 2.5, 6.0]
    assert paired_bootstrap(*values, seed=3) == paired_bootstrap(*values, seed=3)
    with pytest.raises(ValueError, match="zip"):
        paired_bootstrap([1.0, 2.0], [1.0])
