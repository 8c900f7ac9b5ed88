from __future__ import annotations

import pytest

from stackloom.core.claims import ClaimResult, verdict
from stackloom.core.manifest import Claim


def claim(**fields: object) -> Claim:
    return Claim.model_validate({"name": "c", "statement": "s", "where": "Table 1", "metric": "m"} | fields)


@pytest.mark.parametrize(
    ("fields", "ours", "interval", "baseline", "expected"),
    [
        ({"paper": 2.0, "tolerance": 0.1}, 2.05, None, None, "reproduced"),
        ({"paper": 2.0, "tolerance": 0.1}, 2.2, None, None, "not_reproduced"),
        ({"paper": 2.0}, 2.1, (1.9, 2.3), None, "reproduced"),
        ({"paper": 2.0, "better": "higher"}, 2.6, (2.5, 2.7), 1.0, "reproduced"),
        ({"paper": 2.0, "better": "higher"}, 1.5, (1.4, 1.6), 1.0, "direction"),
        ({"paper": 2.0, "better": "higher"}, 1.5, (0.9, 1.7), 1.0, "not_reproduced"),
        ({"paper": 2.0, "better": "lower"}, 2.5, (2.4, 2.6), 3.0, "direction"),
        ({"better": "higher"}, 1.2, (1.1, 1.3), 1.0, "reproduced"),
        ({"better": "higher"}, 1.2, (0.9, 1.5), 1.0, "not_reproduced"),
        ({"better": "equal", "tolerance": 1e-12}, 1e-13, None, 0.0, "reproduced"),
        ({"better": "equal", "tolerance": 1e-12}, 1e-3, None, 0.0, "not_reproduced"),
        ({"better": "higher"}, 1.2, None, None, "not_reproduced"),
    ],
)
def test_a_verdict_follows_from_the_figures(
    fields: dict[str, object], ours: float, interval: tuple[float, float] | None, baseline: float | None, expected: str
) -> None:
    assert (
        verdict(claim(**fields), ClaimResult(ours=ours, interval=interval, baseline=baseline, seeds=(0,))) == expected
    )


@pytest.mark.parametrize("ours", [float("nan")])
def test_a_result_that_is_no_number_never_reproduces(ours: float) -> None:
    assert (
        verdict(claim(paper=1.0, better="higher"), ClaimResult(ours=ours, baseline=0.0, seeds=(0,))) == "not_reproduced"
    )


def test_a_result_names_its_seeds() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ClaimResult(ours=1.0, seeds=())
