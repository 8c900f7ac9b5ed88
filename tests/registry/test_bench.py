"""The bench gives rows that `stackloom bench --json` can print, and its crowd meets no lock."""

from __future__ import annotations

from stackloom.core.rows import BenchRow
from stackloom.registry.bench import run


def test_quick_rows_are_complete_and_nobody_was_locked_out():
    rows = [BenchRow(**row) for row in run(quick=True)]
    assert [row.name for row in rows] == [
        "registry.get",
        "registry.get",
        "registry.rows",
        "registry.list",
        "registry.concurrent",
    ]
    crowd = rows[-1].model_extra
    assert crowd["value"] == 0
    assert crowd["reads_per_second"] > 0
    assert crowd["writes_per_second"] > 0
    for row in rows:
        assert row.met == (row.model_extra["value"] <= row.bar)
