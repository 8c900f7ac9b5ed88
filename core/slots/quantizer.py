"""Slot `quantizer`: low-precision weights and activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from stackloom.core.cache import Tensor
from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot

Progress: TypeAlias = Callable[[int, int], None]  # done, total


def quiet(done: int, total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class LayerReport:
    """What happened to one linear layer.

    Attributes:
        name: dotted module path.
        scheme: for people: "W4 g64 A8 per token".
        snr_db: signal-to-noise ratio of the weights in decibels; of the equalized weights where scales were moved.
        bytes_before, bytes_after: of the layer's parameters, scales included.
        strategy: how its inputs are treated: "float", "per token", "static", "equalized, static".
        activation_range: largest magnitude of its inputs in calibration, before any equalization.
        output_error: squared error of its output on calibration inputs, as a fraction of the output's square.
    """

    name: str
    scheme: str
    snr_db: float
    bytes_before: int
    bytes_after: int
    strategy: str = ""
    activation_range: float | None = None
    output_error: float | None = None


class Quantizer(Protocol):
    """The component: constructed as `Component(config)`; works on a `transformers.PreTrainedModel` in place.

    A quantized model is restored by `rebuild` on a freshly loaded architecture and then `load_state_dict`.
    """

    def quantize(self, model: Any, calibration: Sequence[Tensor], progress: Progress = quiet) -> list[LayerReport]:
        """Quantize the model's linear layers; `calibration` holds token ids (T,), empty where none is needed.

        `progress` is called as the work goes on, with a rising count of steps out of a fixed total. A quantizer with
        feature "equalizes" has `equalize(model, calibration)` too, which does the first, function-preserving part of
        `quantize` alone: it rewrites float weights in place.

        Raises:
            FitError: a layer cannot be quantized this way; named, with the reason.
        """
        ...

    def rebuild(self, model: Any) -> None:
        """Put empty quantized modules where `quantize` would put them, so that a saved state can be loaded."""
        ...

    def dequantize(self, model: Any) -> None:
        """Put plain linear layers with the dequantized weights back, for export."""
        ...


SLOT = Slot(
    name="quantizer",
    version=1,
    sits_in=("quantize",),
    protocol=Quantizer,
    config=ComponentConfig,
    summary="low-precision weights and activations",
    features={
        "weight-only": "activations stay as they are",
        "activations": "activations are quantized",
        "calibration": "needs calibration data",
        "data-free": "an option lets it calibrate without data",
        "equalizes": "moves scales between float weights first, without changing what the model computes",
    },
)
