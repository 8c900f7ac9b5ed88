"""Options of `environment.gymnasium`."""

from __future__ import annotations

from pydantic import JsonValue, model_validator

from stackloom.core.config import ComponentConfig, option


class GymnasiumConfig(ComponentConfig):
    """A registered environment and how its return becomes a reward.

    Example:
        >>> GymnasiumConfig(id="FrozenLake-v1", options={"is_slippery": False}).high
        1.0
    """

    id: str = option("FrozenLake-v1", "what gymnasium.make takes", min_length=1)
    options: dict[str, JsonValue] = option({}, "further arguments of gymnasium.make")
    instructions: str = option("", "what the agent is told besides the tool; say what the actions mean")
    low: float = option(0.0, "return that earns 0")
    high: float = option(1.0, "return that earns 1; in between it is linear")
    steps: int = option(64, "most actions of an attempt", unit="actions", ge=1, le=100_000)
    seed: int = option(0, "task i is reset with seed + 2 i, or 2 i + 1 if held out", ge=0, lt=2**30)

    @model_validator(mode="after")
    def _ordered(self) -> GymnasiumConfig:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self
