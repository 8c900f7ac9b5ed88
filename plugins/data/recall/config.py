"""Options of `data.recall`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option

Task = Literal["associative", "overwrite", "noise", "needle"]


class RecallConfig(ComponentConfig):
    """Questions about what a sequence said earlier, at a chosen length. Only the answers are trained.

    Example:
        >>> RecallConfig(task="overwrite", pairs=16, length=128).bindings
        32
    """

    task: Task = option(
        "associative",
        "associative: keys with values, then keys to answer; overwrite: keys bound again, the last counts; noise: "
        "other tokens in between; needle: a sentence in real text",
        source="inferred",
    )
    split: Literal["train", "held-out"] = option("train", "which of two disjoint streams of draws")
    examples: int = option(1024, "number of examples", ge=1, le=2**31)
    length: int = option(128, "tokens of an example", unit="tokens", source="inferred", ge=8)
    pairs: int = option(8, "different keys of an example", source="inferred", ge=1)
    queries: int = option(8, "keys that are asked for at the end, each once", source="inferred", ge=1)
    keys: int = option(64, "keys to draw from", ge=1)
    values: int = option(64, "values to draw from", ge=2)
    rebinds: int = option(1, "times that each key is bound again in task overwrite", ge=1)
    seed: int = option(0, "of the draws", ge=0, lt=2**63)

    @property
    def bindings(self) -> int:
        """Key-value pairs that an example shows."""
        return self.pairs * (1 + self.rebinds) if self.task == "overwrite" else self.pairs

    @model_validator(mode="after")
    def _fits(self) -> RecallConfig:
        if self.task == "needle":
            return self
        if self.pairs > self.keys:
            raise ValueError(f"{self.pairs} pairs of {self.keys} keys; a key names one pair")
        if self.queries > self.pairs:
            raise ValueError(f"{self.queries} queries of {self.pairs} pairs; each pair is asked for once at most")
        if (needed := 2 * (self.bindings + self.queries)) > self.length:
            raise ValueError(
                f"{self.bindings} bindings and {self.queries} queries take {needed} tokens, length has {self.length}"
            )
        return self
