"""What quantizers that exchange a model's linear layers have in common: selection, exchange, rebuilding, going back."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from stackloom.core.slots.quantizer import LayerReport
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.calibration import InputStatistics
from stackloom.plugins.quantizer.grid import dequantize_groups, snr_db
from stackloom.plugins.quantizer.linear_config import LinearQuantizerConfig
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear, describe

Config = TypeVar("Config", bound=LinearQuantizerConfig)


class LinearQuantizer(Generic[Config]):
    """Base of a quantizer; a subclass brings `quantize`.

    Args:
        config: the plugin's options.

    Attributes:
        plugin: id, for messages.
    """

    plugin: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config

    def rebuild(self, model: Any) -> None:
        """Put empty quantized layers where `quantize` would put them, so that a saved state can be loaded.

        Raises:
            FitError: as `quantize`, but for values of weights and calibration.
        """
        for path, linear in self.linears(model).items():
            layers.put(model, path, self.empty(linear))

    def dequantize(self, model: Any) -> None:
        """Put plain linear layers with the dequantized weights back.

        Raises:
            FitError: nothing is quantized.
        """
        layers.dequantize(model, self.plugin)

    def linears(self, model: Any) -> dict[str, nn.Linear]:
        """Return the selected layers by path.

        Raises:
            FitError: none is selected, one is quantized, tied, or does not divide into groups.
        """
        found = layers.find_linears(model, self.config.include, self.config.exclude, self.plugin)
        layers.check_config(found, self.config, self.plugin)
        return found

    def group(self, linear: nn.Linear) -> int:
        """Return how many weights of a row share a scale."""
        return self.config.group_of(linear.in_features) or linear.in_features

    def empty(self, linear: nn.Linear) -> QuantizedLinear:
        """Return the layer that will stand for this one."""
        return QuantizedLinear.like(
            linear,
            bits=self.config.bits,
            group=self.group(linear),
            int8_activations=self.config.int8_activations,
            static=self.config.static_activations,
        )

    def exchange(
        self,
        model: Any,
        path: str,
        linear: nn.Linear,
        q_NK: Tensor,
        scale_NG: Tensor,
        *,
        seen: InputStatistics | None = None,
        divided_by: Tensor | None = None,
        input_range: float = 0.0,
        strategy: str = "",
    ) -> LayerReport:
        """Put a quantized layer in the place of a float one and say what that cost.

        Args:
            model, path, linear: where, and what was there.
            q_NK, scale_NG: the weight's integers and scales.
            seen: what reached the layer in calibration, if there was any.
            divided_by: (K,) scales that were folded out of the inputs since then.
            input_range: largest magnitude that a static grid holds; 0 for a grid per token.
            strategy: for the report; the default follows from the rest.
        """
        layer = self.empty(linear)
        layer.put(q_NK, scale_NG, linear.bias)
        if input_range:
            layer.put_input_scale(input_range / 127)
        layers.put(model, path, layer)
        reached = seen is not None and seen.tokens > 0
        error = None
        if seen is not None and reached:
            sample_SK = seen.sample_SK if divided_by is None else seen.sample_SK / divided_by
            error = layers.output_error(linear, layer, sample_SK)
        usual = "static" if input_range else "per token" if layer.int8_activations else "float"
        equalized = divided_by is not None and bool((divided_by != 1).any())
        return layers.report(
            path,
            linear,
            layer,
            describe(layer.bits, layer.group, layer.in_features, layer.int8_activations, input_range > 0),
            snr_db(linear.weight, dequantize_groups(q_NK, scale_NG, torch.float64)),
            strategy=strategy or (f"equalized, {usual}" if equalized else usual),
            activation_range=seen.range if seen is not None and reached else None,
            output_error=error,
        )
