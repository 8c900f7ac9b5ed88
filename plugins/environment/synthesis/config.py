"""Options of `environment.synthesis`."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option
from stackloom.plugins.reasoner.answers import ExtractorName


class SynthesisConfig(ComponentConfig):
    """Tasks made of cached answers.

    Example:
        >>> SynthesisConfig(path="cached.jsonl", fewest=4, most=8).hardest
        0.375
    """

    path: str = option(description='JSON lines: {"question", "answer", "answers": [...]}, see `cached_answers.collect`')
    fewest: int = option(16, "fewest answers that a task shows", unit="answers", source="paper", ge=1)
    most: int = option(24, "most of them; their number is drawn evenly", unit="answers", source="paper", ge=1)
    hardest: float = option(
        9 / 24,
        "train tasks have some right answers and a share below this, so that a vote fails; 1 keeps all tasks",
        unit="fraction",
        source="paper",
        gt=0,
        le=1,
    )
    extract: ExtractorName = option("auto", "how answers are found and compared", source="inferred")
    seed: int = option(0, "draws the answers of each task and their order", ge=0, lt=2**63)

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        if self.fewest > self.most:
            raise ValueError(f"fewest {self.fewest} is above most {self.most}")
        return self
