"""Options of `environment.arithmetic`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option

Kind: TypeAlias = Literal[
    "change",
    "distance",
    "sharing",
    "discount",
    "units",
    "stock",
    "average",
    "perimeter",
    "savings",
    "crates",
    "compare",
    "pricing",
    "ages",
    "area",
    "wages",
    "recipe",
    "phone",
    "reading",
    "theatre",
]


class ArithmeticConfig(ComponentConfig):
    """Word problems of one or two calculator calls, whose answer is a number.

    Example:
        >>> ArithmeticConfig(kinds=["change", "distance"], unseen_kinds=["ages"], largest=50).seed
        0
    """

    seed: int = option(0, "draws the problems; another seed gives other problems of the same splits", ge=0, lt=2**63)
    kinds: tuple[Kind, ...] = option(
        (
            "change",
            "distance",
            "sharing",
            "discount",
            "units",
            "stock",
            "average",
            "perimeter",
            "savings",
            "crates",
            "compare",
            "pricing",
        ),
        "kinds of both splits, in turn; their instances differ between the splits",
        min_length=1,
    )
    unseen_kinds: tuple[Kind, ...] = option(
        ("ages", "area", "wages", "recipe", "phone", "reading", "theatre"),
        "kinds of the held-out split alone; empty leaves them out",
    )
    largest: int = option(100, "largest number that a question draws", ge=20, le=1_000_000)

    @model_validator(mode="after")
    def _kinds_differ(self) -> ArithmeticConfig:
        both = self.kinds + self.unseen_kinds
        if twice := sorted({kind for kind in both if both.count(kind) > 1}):
            raise ValueError(f"kinds named twice, so that trained and unseen would mix: {', '.join(twice)}")
        return self
