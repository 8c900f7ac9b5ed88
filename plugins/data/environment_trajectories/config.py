"""Options of `data.environment-trajectories`."""

from __future__ import annotations

from typing import Annotated, Literal

from stackloom.core.config import ComponentConfig, option
from stackloom.core.ref import Ref, RefTo


class EnvironmentTrajectoriesConfig(ComponentConfig):
    """Correct attempts at an environment's tasks, as examples to imitate.

    Example:
        >>> EnvironmentTrajectoriesConfig(environment={"use": "environment.arithmetic"}, count=64).split
        'train'
    """

    environment: Annotated[Ref | ComponentConfig, RefTo("environment")] = option(
        description="whose demonstrations; it must have the feature `demonstrations`"
    )
    split: Literal["train", "held-out"] = option("train", "which of its tasks; held-out is for measuring perplexity")
    count: int = option(512, "how many tasks, from the first", unit="tasks", ge=1, le=1_000_000)
    tool_format: Literal["hermes", "json", "pythonic"] = option(
        "hermes", "how tool calls and results are written; the format that the model is evaluated with"
    )
