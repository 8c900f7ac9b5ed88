"""Round to nearest: each weight to the closest point of its group's grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stackloom.core.slots.quantizer import LayerReport, Progress, quiet
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.grid import quantize_groups
from stackloom.plugins.quantizer.linear_quantizer import LinearQuantizer
from stackloom.plugins.quantizer.rtn.config import RTNConfig


class RTN(LinearQuantizer[RTNConfig]):
    """Quantizes a model's linear layers in place, without data.

    Args:
        config: the plugin's options.

    Example:
        >>> quantizer = RTN(RTNConfig(scheme="w4a16"))
        >>> [report.snr_db for report in quantizer.quantize(model, [])]
    """

    plugin = "quantizer.rtn"

    @torch.no_grad()
    def quantize(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], progress: Progress = quiet
    ) -> list[LayerReport]:
        """Quantize the selected layers. Every check comes before the first change.

        Args:
            model: changed in place; one layer is held twice at a time.
            calibration: not read; the grids follow from the weights.
            progress: called after each layer.

        Raises:
            FitError: no layer is selected, one is quantized, tied, not finite, or does not divide into groups.
        """
        linears = self.linears(model)
        layers.check_weights(linears, self.plugin)
        reports = []
        for path, linear in linears.items():
            q_NK, scale_NG = quantize_groups(linear.weight, self.config.bits, self.group(linear))
            reports.append(self.exchange(model, path, linear, q_NK, scale_NG))
            progress(len(reports), len(linears))
        return reports
