"""Slot `quantizer`: low-precision weights and activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stackloom.core.cache import Tensor
from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot


@dataclass(frozen=True)
class LayerReport:
    """What happened to one linear layer.

    Attributes:
        name: dotted module path.
        scheme: for people: "W4 g64 A8 per token".
        snr_db: signal-to-noise ratio of the weights in decibels.
        bytes_before, bytes_after: of the layer's parameters, scales included.
    """

    name: str
    scheme: str
    snr_db: float
    bytes_before: int
    bytes_after: int


class Quantizer(Protocol):
    """The component: constructed as `Component(config)`; works on a `transformers.PreTrainedModel` in place.

    A quantized model is restored by `rebuild` on a freshly loaded architecture and then `load_state_dict`.
    """

    def quantize(self, model: Any, calibration: Sequence[Tensor]) -> list[LayerReport]:
        """Quantize the model's linear layers; `calibration` holds token ids (T,), empty where none is needed.

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
    },
)
