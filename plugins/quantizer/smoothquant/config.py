"""Options of `quantizer.smoothquant`."""

from __future__ import annotations

from typing import Literal

from stackloom.core.config import option
from stackloom.plugins.quantizer.linear_config import CalibratedConfig


class SmoothQuantConfig(CalibratedConfig):
    """Part of the activations' range moved into the weights, then both rounded to nearest.

    Example:
        >>> SmoothQuantConfig(alpha=0.85).int8_activations
        True
    """

    scheme: Literal["w8a8", "w4a8"] = option("w8a8", "int8 or int4 weights; activations are int8", source="paper")
    alpha: float = option(
        0.5, "migration strength: 0 evens out the weights' channels, 1 the activations'", source="paper", ge=0, le=1
    )
    activations: Literal["token", "tensor"] = option(
        "token", "a grid per token, found as it comes; or one per tensor, found in calibration", source="paper"
    )
    fold: tuple[Literal["norm", "up", "value"], ...] = option(
        ("norm",),
        "where scales may go: norms (q/k/v, gate/up), up_proj (from down_proj), v_proj (from o_proj)",
        source="official code",
    )
    smallest_scale: float = option(1e-5, "least scale of a channel", source="official code", gt=0)

    @property
    def static_activations(self) -> bool:
        """Whether a scale per tensor is kept."""
        return self.activations == "tensor"

    @property
    def folded_sites(self) -> tuple[str, ...]:
        """Where scales may go."""
        return self.fold
