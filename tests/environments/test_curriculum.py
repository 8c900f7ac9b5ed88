"""The noise curriculum: when it rises, and what it deals out."""

from collections import Counter

import pytest

from stackloom.core.errors import ConfigError
from stackloom.environments.curriculum import Curriculum


def test_it_rises_after_robust_evaluations_in_a_row() -> None:
    curriculum = Curriculum(level=0, patience=3)
    assert [curriculum.observe(0.8, noisy) for noisy in (0.8, 0.76, 0.6, 0.8, 0.76, 0.9)] == [False] * 5 + [True]
    assert curriculum.state() == {"level": 1, "robust": 0}


def test_it_ends_at_the_highest_level() -> None:
    curriculum = Curriculum(level=3, patience=1)
    assert [curriculum.observe(0.5, 0.5) for _ in range(3)] == [True, False, False]
    assert curriculum.level == 4


def test_it_goes_on_from_its_state() -> None:
    one = Curriculum(level=2)
    one.observe(0.5, 0.5)
    two = Curriculum(**one.state())
    assert [two.observe(0.5, 0.5) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("count", [0, 1, 2, 7, 10, 64])
def test_a_batch_is_dealt_out_by_the_shares(level: int, count: int) -> None:
    dealt = Counter(Curriculum(level=level).deal(count))
    assert sum(dealt.values()) == count
    assert set(dealt) <= set(range(level + 1))
    between = level > 1
    if level:
        assert dealt[level] == pytest.approx(count * (0.5 if between else 0.8), abs=1)
        assert dealt[0] == pytest.approx(count * 0.2, abs=1)
        assert sum(dealt[each] for each in range(1, level)) == pytest.approx(count * 0.3 * between, abs=level)


@pytest.mark.parametrize("options", [{"level": 5}, {"level": -1}, {"patience": 0}, {"gap": -0.1}, {"highest": 9}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Curriculum(**options)
