"""Options of `quantizer.rtn`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stackloom.core.config import option
from stackloom.plugins.quantizer.linear_config import LinearQuantizerConfig


class RTNConfig(LinearQuantizerConfig):
    """Each weight to the nearest point of a symmetric grid, without calibration.

    Example:
        >>> RTNConfig(scheme="w4a16").group_of(576)
        64
    """

    group_size: Literal["auto", "channel"] | Annotated[int, Field(ge=2)] = option(
        "auto",
        "weights of a row that share a scale; channel is the whole row; auto is channel for w8a8 and 64 for int4",
        unit="weights",
    )

    auto_groups: ClassVar[tuple[int, ...]] = (64,)
