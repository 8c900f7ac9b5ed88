"""Options of `tracker.jsonl`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import ComponentConfig, option


class JsonlConfig(ComponentConfig):
    """Metrics and events as JSON Lines in the run's folder.

    Example:
        >>> JsonlConfig().durable
        'stage'
    """

    durable: Literal["step", "stage"] = option(
        "stage",
        "when rows are forced to the disk, to survive a power cut; a killed process loses no row either way",
    )
