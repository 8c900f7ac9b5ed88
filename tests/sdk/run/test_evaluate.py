from __future__ import annotations

import pytest

import stackloom as sl
from stackloom.core.errors import ConfigError
from stackloom.run import runner


def test_a_task_too_long_for_the_context_fails_and_stops_nothing(planned, registry, tmp_path) -> None:
    plan = planned(sl.evaluate(environment=sl.use("environment.arithmetic"), tasks=3))  # a context of 256 bytes
    found = runner.run(plan, registry, folder=tmp_path / "run").metrics(0)
    assert found["ended"] == {"context": 3}
    assert (found["pass_rate"]["value"], found["pass_rate"]["count"], found["masked"]) == (0.0, 3, 0)


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        ("evaluate", {"data": "data.pydoc", "tasks": 50}, "tasks is read only with environment"),
        ("evaluate", {"data": "data.pydoc", "temperature": 0.0}, "temperature is read only with environment"),
        (
            "evaluate",
            {"data": "data.pydoc", "reasoner": {"use": "reasoner.single"}},
            "reasoner is read only with environment",
        ),
        ("evaluate", {"environment": "environment.arithmetic", "sequences": 4}, "sequences is read only with data"),
        ("quantize", {"quantizer": "quantizer.rtn", "calibration_sequences": 8}, "calibration_sequences is read only"),
    ],
)
def test_an_option_that_nothing_reads_is_an_error_of_the_plan(planned, kind, options, key) -> None:
    with pytest.raises(ConfigError, match=key):
        planned(sl.stage(kind, **{name: _ref(value) for name, value in options.items()}))


def test_an_option_left_at_null_is_not_given(planned) -> None:
    planned(sl.evaluate(data=sl.use("data.pydoc"), reasoner=None, sequence_length=32))


def _ref(value: object) -> object:
    return {"use": value} if isinstance(value, str) else value
