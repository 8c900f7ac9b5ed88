"""The pipeline's overhead is measured against a loop that does the very same, or not at all."""

from __future__ import annotations

import pytest

from stackloom import pipeline_bench
from stackloom.core.errors import EngineError
from stackloom.pipeline_bench import CASES, measure


def test_a_row_compares_steps_of_equal_losses() -> None:
    row = measure(CASES[0], 3)
    assert tuple(row)[:8] == ("name", "case", "ratio", "bar", "met", "floor_fraction", "error", "device")
    assert row["runs"] == 3
    assert row["error"] < 1e-6
    assert row["ratio"] > 0
    assert row["took_seconds"] > 0


def test_loops_that_differ_get_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline_bench._hand_written

    def other(*arguments):
        step = original(*arguments)
        return lambda index: step(index) * 1.01

    monkeypatch.setattr(pipeline_bench, "_hand_written", other)
    with pytest.raises(EngineError, match="not measured: the losses"):
        measure(CASES[0], 2)
