"""Options of `environment.noise`."""

from __future__ import annotations

from typing import Annotated

from pydantic import field_validator

from stackloom.core.config import ComponentConfig, option
from stackloom.core.ref import Ref, RefTo
from stackloom.environments.tape import CATALOGUE, HIGHEST, Kind


class NoiseConfig(ComponentConfig):
    """Noise over another environment, whose tasks keep their ids, so that a clean and a noisy evaluation are paired.

    Example:
        >>> NoiseConfig(base={"use": "environment.domain-graph", "tools": 24}, level=2).kinds[0]
        'U1'
    """

    base: Annotated[Ref | ComponentConfig, RefTo("environment")] = option(
        "environment.domain-graph", "the environment that is wrapped; it must show correct attempts"
    )
    level: int = option(
        2,
        "how much noise: events are noisy with probability 0, .05, .1, .2, .3, and kinds are 0, 1, 2, 4, all",
        ge=0,
        le=HIGHEST,
        source="inferred",
    )
    kinds: tuple[Kind, ...] = option(
        tuple(CATALOGUE), "what may occur: U1 to U5 of users, T1 to T6 of tools", min_length=1, source="inferred"
    )
    seed: int = option(0, "draws the noise; the tasks are the base's", ge=0, lt=2**63)
    turns: int = option(
        32,
        "messages of the agent within which a task must be solvable",
        unit="messages",
        ge=2,
        le=1000,
        source="inferred",
    )

    @field_validator("kinds")
    @classmethod
    def _once(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return kinds
