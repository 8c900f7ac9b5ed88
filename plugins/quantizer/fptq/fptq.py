"""FPTQ: the range of a layer's inputs decides how they are quantized; loud channels are equalized logarithmically."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stackloom.core.errors import FitError
from stackloom.plugins.quantizer.calibration import InputStatistics, checked, random_tokens
from stackloom.plugins.quantizer.equalization import Site
from stackloom.plugins.quantizer.equalizing import EqualizingQuantizer, Treatment
from stackloom.plugins.quantizer.fptq.config import FPTQConfig


def log_scale(largest_K: Tensor, smallest: float = 0.0) -> Tensor:
    """Return s = m / log2(2 + m), so that a channel's largest magnitude becomes log2(2 + m).

    Channels below 2 grow, those above 2 shrink: s(2) = 1.

    Args:
        largest_K: (K,) m, largest magnitude of each channel.
        smallest: least scale; with 0 a dead channel gets 1.

    Returns:
        (K,) float64, positive.

    Source: FPTQ (arXiv 2308.15987), logarithmic activation equalization.

    Example:
        >>> log_scale(torch.tensor([2.0, 14.0, 0.0]))
        tensor([1.0000, 3.5000, 1.0000], dtype=torch.float64)
    """
    m = largest_K.double()
    scale_K = m / torch.log2(2 + m)
    return scale_K.clamp_min(smallest) if smallest else torch.where(m > 0, scale_K, 1.0)


class FPTQ(EqualizingQuantizer[FPTQConfig]):
    """Classifies each tensor that layers read by its calibrated range, folds scales, and quantizes weights in groups.

    Args:
        config: the plugin's options.

    Example:
        >>> quantizer = FPTQ(FPTQConfig(calibration="random-tokens"))
        >>> [(report.strategy, report.activation_range) for report in quantizer.quantize(model, [])]
    """

    plugin = "quantizer.fptq"
    config: FPTQConfig

    def __init__(self, config: FPTQConfig) -> None:
        super().__init__(config)
        self.full = config.grid == "full"

    def sequences(self, model: PreTrainedModel, calibration: Sequence[Tensor]) -> list[Tensor]:
        """Return the given sequences, or random token ids; data is not read then."""
        config = self.config
        if config.reads_data:
            return checked(calibration, model, self.plugin)
        vocabulary = model.config.get_text_config().vocab_size
        drawn = random_tokens(vocabulary, config.random_sequences, config.random_length, config.random_seed)
        return checked(drawn, model, self.plugin)

    def treat(self, site: Site, seen: InputStatistics, weights: Sequence[Tensor]) -> Treatment:
        """Return what the bands say; inputs that are zero throughout have no range, and get a grid per token."""
        config = self.config
        if seen.range == 0 or (config.static_up_to < seen.range and seen.range >= config.dynamic_from):
            return Treatment()
        if seen.range <= config.static_up_to or not config.equalize:
            return self._static(seen)
        if site.kind:
            clamp = config.smallest_scale if config.dead_channels == "clamp" else 0.0
            return self._static(seen, site.tied(log_scale(seen.largest_K, clamp).clamp_min(config.smallest_scale)))
        if config.unfoldable == "refuse":
            raise FitError(
                f"the inputs of {site.layers[0]} have range {seen.range:.1f}, and their producer cannot absorb scales",
                where=self.plugin,
                fix="allow its kind in fold, set unfoldable to token or static, or exclude the layer",
            )
        return Treatment() if config.unfoldable == "token" else self._static(seen)

    def _static(self, seen: InputStatistics, scale_K: Tensor | None = None) -> Treatment:
        divisor_K = torch.ones_like(seen.largest_K).double() if scale_K is None else scale_K
        if self.config.range_quantile == 1:
            return Treatment(scale_K, (seen.largest_K.double() / divisor_K).max().item())
        per_token_S = (seen.sample_SK.double() / divisor_K).abs().amax(1)
        return Treatment(scale_K, torch.quantile(per_token_S, self.config.range_quantile).item())
