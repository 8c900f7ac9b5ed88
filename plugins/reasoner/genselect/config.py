"""Options of `reasoner.genselect`."""

from __future__ import annotations

from stackloom.core.config import option
from stackloom.plugins.reasoner.thinking_config import ThinkingConfig


class GenSelectConfig(ThinkingConfig):
    """The model names the best of several answers.

    Example:
        >>> GenSelectConfig(width=4).aggregation_calls
        1
    """

    judge_temperature: float = option(0.0, "sampling temperature of the choice", source="inferred", ge=0, le=5)
    characters: int = option(
        4000, "most of one answer that is shown, head and tail", unit="characters", source="inferred", ge=64
    )

    @property
    def aggregation_calls(self) -> int:
        """The choice."""
        return 1
