"""Integer Scale: the group scales of a quantized model as integers over an amplifier, proved not to overflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stackloom.core.config import ComponentConfig
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.quantizer import LayerReport, Progress, quiet
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.grid import snr_db
from stackloom.plugins.quantizer.integer_scale.amplification import (
    EXACT,
    INT32_MAX,
    MOST_SHIFTS,
    alive,
    heuristic,
    inflation,
    integer_scales,
    requantized,
    worst_sums,
)
from stackloom.plugins.quantizer.integer_scale.config import AMPLIFIER_BYTES, IntegerScaleConfig
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear

ID = "quantizer.integer-scale"


class IntegerScale:
    """Runs a base quantizer and turns the scales of its layers into integers.

    Args:
        config: the plugin's options, `base` resolved to a config.

    Raises:
        ConfigError: `base` is still a reference.

    Example:
        >>> quantizer = IntegerScale(IntegerScaleConfig(base=RTNConfig(scheme="w4a8")))
        >>> quantizer.quantize(model, [])[0].scheme
        'W4 g64, A8 per token, integer scales / 1024'
    """

    def __init__(self, config: IntegerScaleConfig) -> None:
        if not isinstance(config.base, ComponentConfig):
            raise ConfigError(
                f"{config.base.use} is not resolved yet",
                where="base",
                fix="plan the stack, or give the plugin's config object",
            )
        self.config, self.base = config, config.base.build()

    @torch.no_grad()
    def quantize(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], progress: Progress = quiet
    ) -> list[LayerReport]:
        """Quantize with the base, then convert every layer that it made.

        Args:
            model: changed in place; its float layers are held until the end.
            calibration: for the base.
            progress: for the base, which does the work.

        Raises:
            FitError: as the base; or a layer with float activations, a scale that is zero or not finite, or one for
                which no amplifier keeps every sum in int32 and every group alive.
        """
        floats = {path: module for path, module in model.named_modules() if type(module) is nn.Linear}
        reports = self.base.quantize(model, calibration, progress)
        found = self._layers(model)
        return [self._convert(found[report.name], floats[report.name], report) for report in reports]

    def rebuild(self, model: PreTrainedModel) -> None:
        """Put empty layers where `quantize` would put them, so that a saved state can be loaded.

        Raises:
            FitError: as the base, or a layer with float activations.
        """
        self.base.rebuild(model)
        for layer in self._layers(model).values():
            layer.amplify(layer.scale, torch.ones(layer.out_features, device=layer.scale.device))

    def dequantize(self, model: PreTrainedModel) -> None:
        """Put plain linear layers back, with the weights that integer scales stand for.

        Raises:
            FitError: nothing is quantized.
        """
        self.base.dequantize(model)

    def _layers(self, model: PreTrainedModel) -> dict[str, QuantizedLinear]:
        found = layers.quantized(model)
        for path, layer in found.items():
            if not layer.int8_activations:
                raise FitError(f"{path} has float activations", where=ID, fix="choose a w4a8 scheme for the base")
            if layer.amplifier is not None:
                raise FitError(f"{path} has integer scales already", where=ID, fix="name the base once")
        return found

    def _convert(self, layer: QuantizedLinear, linear: nn.Linear, report: LayerReport) -> LayerReport:
        if not (torch.isfinite(layer.scale).all() and (layer.scale != 0).all()):
            raise FitError(f"{report.name} has a scale that is zero or not finite", where=ID, fix="repair the base")
        q_NK, multiplier_NG, amplifier_N = self.choose(layer, linear.weight, report.name)
        if self.config.requantize:
            layer.put(q_NK, layer.scale, None)
        layer.amplify(multiplier_NG, amplifier_N)
        low, high = int(amplifier_N.min()), int(amplifier_N.max())
        return replace(
            report,
            scheme=f"{report.scheme}, integer scales / {low if low == high else f'{low} to {high}'}",
            snr_db=snr_db(linear.weight, layer.dequantized(torch.float64)),
            bytes_after=report.bytes_after + amplifier_N.numel() * AMPLIFIER_BYTES,
            activation_range=None,  # with the output's error, which was measured with float scales
            output_error=None,
        )

    def choose(self, layer: QuantizedLinear, weight_NK: Tensor, path: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return (q, I, alpha) of a layer with float scales: safe for every int8 input, or refused.

        Args:
            layer: (N, K) with (N, G) float scales; not changed.
            weight_NK: the float weights, for `requantize`.
            path: for messages.

        Returns:
            q (N, K) int8, I (N, G) int64, alpha (N,) int64.

        Raises:
            FitError: names the layer and what would have to change.
        """
        amplifier_N = self._wanted(layer)
        if self.config.zeroed == "raise":
            amplifier_N = self._raised(layer, amplifier_N)
        while True:
            q_NK, multiplier_NG = self._integers(layer, weight_NK, amplifier_N)
            over_N = (worst_sums(q_NK, multiplier_NG) > INT32_MAX) | (multiplier_NG.abs() > EXACT).any(1)
            if not over_N.any():
                break
            if self.config.overflow == "refuse" or int(amplifier_N[over_N].min()) == 1:
                raise FitError(
                    f"{path} can overflow int32 with amplifier {int(amplifier_N[over_N].min())}",
                    where=ID,
                    fix="lower the amplifier, use overflow: lower, or exclude the layer",
                )
            amplifier_N = amplifier_N // (1 + self._together(over_N).long())
        if self.config.zeroed != "keep" and bool((self._dead(layer, amplifier_N)).any()):
            raise FitError(
                f"a group of {path} has scale {layer.scale.abs().min().item():.2g}, which amplifier "
                f"{int(amplifier_N.min())} rounds to 0",
                where=ID,
                fix="raise the amplifier, use per: channel, or zeroed: keep",
            )
        return q_NK, multiplier_NG, amplifier_N

    def _wanted(self, layer: QuantizedLinear) -> Tensor:
        """Return the policy's amplifiers (N,) before any bound."""
        scale_NG, policy, per_layer = layer.scale, self.config.policy, self.config.per == "layer"
        amplifier_N = torch.full((layer.out_features,), self.config.amplifier, device=scale_NG.device)
        if policy == "heuristic":
            live_NG = scale_NG.masked_fill(~alive(layer.integers(), scale_NG.shape[1]), 0)
            found = torch.tensor(
                [heuristic(part) for part in ([live_NG] if per_layer else live_NG)], device=scale_NG.device
            )
            return torch.maximum(amplifier_N, found)
        if policy == "error-budget":
            return self._within_budget(layer)
        return amplifier_N

    def _within_budget(self, layer: QuantizedLinear) -> Tensor:
        amplifier_N = torch.ones(layer.out_features, dtype=torch.int64, device=layer.scale.device)
        q_NK, up = layer.integers(), self.config.rounding == "up"
        for _ in range(MOST_SHIFTS):
            added_N, own_N = inflation(layer.scale, q_NK, amplifier_N, up)
            if self.config.per == "layer":
                added_N, own_N = (value.sum().expand_as(amplifier_N) for value in (added_N, own_N))
            beyond_N = added_N > self.config.error_budget * own_N
            if not beyond_N.any():
                break
            amplifier_N = amplifier_N * (1 + beyond_N.long())
        return amplifier_N

    def _raised(self, layer: QuantizedLinear, amplifier_N: Tensor) -> Tensor:
        """Double amplifiers until no group is lost, or they are as large as they get."""
        while (dead_N := self._together(self._dead(layer, amplifier_N)) & (amplifier_N < 2**MOST_SHIFTS)).any():
            amplifier_N = amplifier_N * (1 + dead_N.long())
        return amplifier_N

    def _dead(self, layer: QuantizedLinear, amplifier_N: Tensor) -> Tensor:
        """Return (N,) whether a group with weights would be lost."""
        lost_NG = integer_scales(layer.scale, amplifier_N, self.config.rounding == "up") == 0
        return (lost_NG & alive(layer.integers(), layer.scale.shape[1])).any(1)

    def _together(self, some_N: Tensor) -> Tensor:
        """Let all rows of a layer share the fate of some where they share an amplifier."""
        return some_N.any().expand_as(some_N) if self.config.per == "layer" else some_N

    def _integers(self, layer: QuantizedLinear, weight_NK: Tensor, amplifier_N: Tensor) -> tuple[Tensor, Tensor]:
        multiplier_NG = integer_scales(layer.scale, amplifier_N, self.config.rounding == "up")
        if not self.config.requantize:
            return layer.integers(), multiplier_NG
        return requantized(weight_NK, multiplier_NG, amplifier_N, layer.bits), multiplier_NG
