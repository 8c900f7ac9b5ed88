"""Options of `quantizer.fptq`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.core.fit import Fit, FitContext
from stackloom.plugins.quantizer.linear_config import CalibratedConfig


class FPTQConfig(CalibratedConfig):
    """Int4 weights in groups; per layer a static grid, an equalized static grid, or a grid per token for its inputs.

    Example:
        >>> FPTQConfig(dynamic_from=100.0).static_up_to
        15.0
    """

    scheme: Literal["w4a8", "w8a8"] = option("w4a8", "int4 or int8 weights; activations are int8", source="paper")
    static_up_to: float = option(
        15.0, "v0: inputs whose range is at most this get a static grid as they are", source="paper", ge=0
    )
    dynamic_from: float = option(
        150.0,
        "v1: inputs whose range is at least this get a grid per token, without equalization",
        source="paper",
        ge=0,
    )
    equalize: bool = option(
        True,
        "equalize inputs with a range between the two; without it they get a static grid as they are",
        source="paper",
    )
    fold: tuple[Literal["norm", "up", "value"], ...] = option(
        ("norm", "up", "value"),
        "where scales may go: norms (q/k/v, gate/up) as in the paper, up_proj (from down_proj), v_proj (from o_proj)",
        source="inferred",
    )
    unfoldable: Literal["refuse", "token", "static"] = option(
        "refuse",
        "inputs in the middle band whose producer cannot absorb scales: refuse the layer, or a grid per token, or a "
        "static grid as they are",
        source="inferred",
    )
    dead_channels: Literal["keep", "clamp"] = option(
        "keep", "scale of a channel that calibration never saw move: 1, or `smallest_scale`", source="inferred"
    )
    smallest_scale: float = option(1e-5, "least scale of a channel", source="official code", gt=0)
    range_quantile: float = option(
        1.0,
        "share of calibration tokens that a static grid holds; 1 is the largest magnitude seen, less is taken from a "
        "sample of the tokens",
        unit="fraction",
        source="inferred",
        gt=0,
        le=1,
    )
    grid: Literal["narrow", "full"] = option(
        "narrow", "a group's largest weight is 7 steps; or 7.5, which uses the lowest level too", source="inferred"
    )
    calibration: Literal["data", "random-tokens"] = option(
        "data", "what statistics are taken on: the stage's data, or random token ids", source="paper"
    )
    random_sequences: int = option(32, "random sequences", unit="sequences", source="inferred", gt=0)
    random_length: int = option(512, "tokens of each", unit="tokens", source="inferred", gt=0)
    random_seed: int = option(0, "of the random token ids", ge=0, lt=2**63)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> FPTQConfig:
        if self.static_up_to > self.dynamic_from:
            raise ValueError(f"static_up_to {self.static_up_to} exceeds dynamic_from {self.dynamic_from}")
        return self

    @property
    def reads_data(self) -> bool:
        """Whether the stage's data is read."""
        return self.calibration == "data"

    @property
    def static_activations(self) -> bool:
        """Every layer has a place for a static scale; which use it is known after calibration."""
        return True

    @property
    def folded_sites(self) -> tuple[str, ...]:
        """Where scales may go."""
        return self.fold if self.equalize else ()

    def fit(self, ctx: FitContext) -> list[Fit]:
        """As every calibrated quantizer; random sequences must not be longer than the model's positions."""
        answers = super().fit(ctx)
        if not self.reads_data and self.random_length > ctx.model.max_positions:
            answers.append(
                Fit.no(f"random_length {self.random_length} exceeds the model's {ctx.model.max_positions} positions")
            )
        return answers
