"""Slot `tracker`: listens to a run and writes its metrics somewhere."""

from __future__ import annotations

from typing import Protocol

from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot


class Tracker(Protocol):
    """The component: constructed as `Component(config, folder)` with the run's folder; implements core.hooks."""

    def close(self) -> None:
        """Flush and release everything; called once, also after an error."""
        ...


SLOT = Slot(
    name="tracker",
    version=1,
    sits_in=("trackers",),
    protocol=Tracker,
    config=ComponentConfig,
    summary="listens to a run and writes its metrics somewhere",
    features={"metrics": "records values per step", "events": "records stages and errors"},
)
