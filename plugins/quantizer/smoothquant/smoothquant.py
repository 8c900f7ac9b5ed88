"""SmoothQuant: loud activation channels are divided by a scale that the weights' columns are multiplied with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stackloom.plugins.quantizer.calibration import InputStatistics
from stackloom.plugins.quantizer.equalization import Site
from stackloom.plugins.quantizer.equalizing import EqualizingQuantizer, Treatment
from stackloom.plugins.quantizer.smoothquant.config import SmoothQuantConfig


def smoothing(largest_K: Tensor, weights: Sequence[Tensor], alpha: float, smallest: float) -> Tensor:
    """Return s = max|x|^alpha / max|w|^(1 - alpha), 1 for channels that are dead in the inputs or in all weights.

    Args:
        largest_K: (K,) largest magnitude of each input channel.
        weights: (N, K) of all layers that read the input.
        alpha: migration strength in [0, 1].
        smallest: least scale.

    Returns:
        (K,) float64, positive.

    Source: SmoothQuant (arXiv 2211.10438), equation 4; the authors' code for the clamp.

    Example:
        >>> smoothing(torch.tensor([16.0, 1.0]), [torch.ones(3, 2)], 0.5, 1e-5)
        tensor([4., 1.], dtype=torch.float64)
    """
    inputs_K = largest_K.double()
    weights_K = torch.stack([weight.double().abs().amax(0) for weight in weights]).amax(0)
    scale_K = (inputs_K**alpha / weights_K.clamp_min(smallest) ** (1 - alpha)).clamp_min(smallest)
    return torch.where((inputs_K > 0) & (weights_K > 0), scale_K, 1.0)


class SmoothQuant(EqualizingQuantizer[SmoothQuantConfig]):
    """Equalizes every site whose producer can absorb a scale, then rounds weights and activations to nearest.

    Args:
        config: the plugin's options.

    Example:
        >>> quantizer = SmoothQuant(SmoothQuantConfig(scheme="w4a8"))
        >>> [report.strategy for report in quantizer.quantize(model, calibration)]
    """

    plugin = "quantizer.smoothquant"
    config: SmoothQuantConfig

    def treat(self, site: Site, seen: InputStatistics, weights: Sequence[Tensor]) -> Treatment:
        """Smooth where there is a producer; a static grid spans what calibration showed after that."""
        largest_K = seen.largest_K.double()
        scale_K = None
        if site.kind:
            scale_K = site.tied(smoothing(largest_K, weights, self.config.alpha, self.config.smallest_scale))
            largest_K = largest_K / scale_K
        static = self.config.activations == "tensor"
        return Treatment(scale_K, largest_K.max().item() if static else 0.0)
