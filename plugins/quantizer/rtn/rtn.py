"""Round to nearest: each weight to the closest point of its group's grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stackloom.core.slots.quantizer import LayerReport
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.grid import dequantize_groups, quantize_groups, snr_db
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear, describe
from stackloom.plugins.quantizer.rtn.config import RTNConfig

ID = "quantizer.rtn"


class RTN:
    """Quantizes a model's linear layers in place, without data.

    Args:
        config: the plugin's options.

    Example:
        >>> quantizer = RTN(RTNConfig(scheme="w4a16"))
        >>> [report.snr_db for report in quantizer.quantize(model, [])]
    """

    def __init__(self, config: RTNConfig) -> None:
        self.config = config

    @torch.no_grad()
    def quantize(self, model: PreTrainedModel, calibration: Sequence[Tensor]) -> list[LayerReport]:
        """Quantize the selected layers. Every check comes before the first change.

        Args:
            model: changed in place; one layer is held twice at a time.
            calibration: not read; the grids follow from the weights.

        Raises:
            FitError: no layer is selected, one is quantized, tied, not finite, or does not divide into groups.
        """
        linears = self._linears(model)
        layers.check_weights(linears, ID)
        return [self._quantize(model, path, linear) for path, linear in linears.items()]

    def rebuild(self, model: PreTrainedModel) -> None:
        """Put empty quantized layers where `quantize` would put them, so that a saved state can be loaded.

        Raises:
            FitError: as `quantize`, but for the weights' values.
        """
        for path, linear in self._linears(model).items():
            layers.put(model, path, self._empty(linear))

    def dequantize(self, model: PreTrainedModel) -> None:
        """Put plain linear layers with the dequantized weights back.

        Raises:
            FitError: nothing is quantized.
        """
        layers.dequantize(model, ID)

    def _linears(self, model: PreTrainedModel) -> dict[str, nn.Linear]:
        found = layers.find_linears(model, self.config.include, self.config.exclude, ID)
        layers.check_groups(found, self.config.group, ID)
        return found

    def _empty(self, linear: nn.Linear) -> QuantizedLinear:
        return QuantizedLinear.like(
            linear,
            bits=self.config.bits,
            group=self.config.group or linear.in_features,
            int8_activations=self.config.int8_activations,
        )

    def _quantize(self, model: PreTrainedModel, path: str, linear: nn.Linear) -> LayerReport:
        layer = self._empty(linear)
        q, scale = quantize_groups(linear.weight, layer.bits, layer.group)
        layer.put(q, scale, linear.bias)
        layers.put(model, path, layer)
        scheme = describe(layer.bits, layer.group, layer.in_features, layer.int8_activations)
        quality = snr_db(linear.weight, dequantize_groups(q, scale, torch.float64))
        return layers.report(path, linear, layer, scheme, quality)
