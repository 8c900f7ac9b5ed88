"""Options of `tracker.tensorboard`."""

from __future__ import annotations

from stackloom.core.config import ComponentConfig, option


class TensorBoardConfig(ComponentConfig):
    """Curves for TensorBoard.

    Example:
        >>> TensorBoardConfig().flush_seconds
        30.0
    """

    flush_seconds: float = option(
        30.0, "longest time that a written value waits; a new step writes out the one before", unit="seconds", gt=0
    )
