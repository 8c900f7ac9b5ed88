"""Options of `environment.search-world`."""

from __future__ import annotations

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option


class SearchWorldConfig(ComponentConfig):
    """Questions whose answer adds up numbers from many entries of an archive.

    Example:
        >>> SearchWorldConfig(fewest=2, most=4).lines
        3
    """

    seed: int = option(0, "draws the archives; another seed gives other ones", ge=0, lt=2**63)
    fewest: int = option(10, "fewest entries that an answer needs", unit="entries", source="inferred", ge=1, le=60)
    most: int = option(40, "most of them", unit="entries", source="inferred", ge=1, le=60)
    lines: int = option(
        3, "shipping lines that have a ship of each name: entries that a search finds", unit="entries", ge=1, le=8
    )
    remarks: int = option(
        2, "sentences of each entry that say nothing of the cargo", unit="sentences", source="inferred", ge=0, le=20
    )

    @model_validator(mode="after")
    def _numbers_agree(self) -> SearchWorldConfig:
        if self.fewest > self.most:
            raise ValueError(f"fewest {self.fewest} is above most {self.most}")
        return self
