"""PostgreSQL that is stopped in the middle of writes loses nothing that was acknowledged."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from stackloom.registry import StorageError, open_registry

pytestmark = [pytest.mark.slow, pytest.mark.faults]


def test_an_immediate_stop_during_writes_loses_nothing_acknowledged(postgres, evidence_row, capsys):
    url = postgres.new_database()
    chance = random.Random(11)
    acknowledged: list[tuple[str, str]] = []
    refused: list[StorageError] = []
    stops = 3
    for stop in range(stops):
        writing = threading.Event()

        def write(stop: int = stop, writing: threading.Event = writing) -> None:
            try:
                with open_registry(url, search_path=[]) as registry:
                    for number in range(1_000_000):
                        run = registry.ledger.begin(f"stop {stop}", {}, "", Path())
                        row = evidence_row(claim=f"{stop} {number}")
                        registry.evidence.append(row)
                        acknowledged.append((run, row.claim))
                        writing.set()
            except StorageError as error:
                refused.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        assert writing.wait(30)
        time.sleep(chance.uniform(0.05, 0.4))
        postgres.stop("immediate")
        thread.join(60)
        assert not thread.is_alive()
        postgres.start()
    assert len(refused) == stops
    with open_registry(url, search_path=[]) as registry:
        assert {run for run, _ in acknowledged} <= {run.id for run in registry.ledger.runs()}
        assert {claim for _, claim in acknowledged} <= {row.claim for row in registry.evidence.rows()}
    with capsys.disabled():
        print(f"\nregistry on PostgreSQL: {stops} immediate stops, {len(acknowledged)} pairs acknowledged, all there")


def test_a_registry_goes_on_after_the_server_came_back(postgres):
    with open_registry(postgres.new_database(), search_path=[]) as registry:
        run = registry.ledger.begin("x", {}, "", Path())
        postgres.stop("immediate")
        with pytest.raises(StorageError, match="server runs"):
            registry.ledger.runs()
        with pytest.raises(StorageError, match="server runs"):
            registry.ledger.begin("y", {}, "", Path())
        postgres.start()
        assert [each.id for each in registry.ledger.runs()] == [run]
        registry.ledger.finish(run)
