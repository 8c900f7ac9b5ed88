"""GPTQ: blocks in order, each layer's columns rounded one by one, each error made up for by the columns after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stackloom.core.slots.quantizer import LayerReport, Progress, quiet
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.blocks import Block, decoder_blocks, walk
from stackloom.plugins.quantizer.calibration import (
    InputStatistics,
    Observer,
    checked,
    refuse_outside,
    refuse_unreached,
)
from stackloom.plugins.quantizer.clipping import search_clipping
from stackloom.plugins.quantizer.gptq.config import GPTQConfig
from stackloom.plugins.quantizer.grid import group_scales, quantize_groups
from stackloom.plugins.quantizer.hessian import compensate
from stackloom.plugins.quantizer.linear_quantizer import LinearQuantizer

SAMPLE = 256  # inputs of a layer on which its error is measured


class GPTQ(LinearQuantizer[GPTQConfig]):
    """Quantizes a model's blocks in order, each on what the quantized blocks before it give.

    Args:
        config: the plugin's options.

    Example:
        >>> quantizer = GPTQ(GPTQConfig(scheme="w4a16"))
        >>> [report.output_error for report in quantizer.quantize(model, calibration)]
    """

    plugin = "quantizer.gptq"

    @torch.no_grad()
    def quantize(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], progress: Progress = quiet
    ) -> list[LayerReport]:
        """Quantize the selected layers, one block's Hessians at a time.

        Args:
            model: changed in place. Selection and weights are checked before the first change; inputs that are not
                finite or never come are found when their block is reached.
            calibration: token ids (T,); as many tokens as the widest layer has in features, or more.
            progress: called after each layer.

        Raises:
            FitError: no layer is selected, one is quantized, tied, not finite, outside of the decoder's blocks, never
                reached, or has a Hessian that no damping repairs.
        """
        linears = self.linears(model)
        layers.check_weights(linears, self.plugin)
        sequences = checked(calibration, model, self.plugin)
        refuse_outside(linears, decoder_blocks(model, self.plugin), self.plugin)
        reports: dict[str, LayerReport] = {}
        for block in walk(model, sequences, self.plugin):
            inside = {path: linear for path, linear in linears.items() if path.startswith(f"{block.path}.")}
            for group in self._order(block, inside):
                with Observer(
                    {path: inside[path] for path in group},
                    sequences=len(sequences),
                    hessian=True,
                    sample=SAMPLE,
                    where=self.plugin,
                ) as seen:
                    block.outputs()
                for path in group:
                    reports[path] = self._layer(model, path, inside[path], seen.statistics[path])
                    progress(len(reports), len(linears))
        return [reports[path] for path in linears]

    def _order(self, block: Block, inside: Mapping[str, nn.Linear]) -> list[tuple[str, ...]]:
        """Return the block's layers in the order of execution, those together that are quantized on one pass."""
        with Observer(inside, sequences=1, where=self.plugin) as seen:
            block.outputs()
        if self.config.unreached == "refuse":
            refuse_unreached(seen.unreached, self.plugin)
        groups = [*seen.groups, *((path,) for path in seen.unreached)]
        return groups if self.config.observe == "layer" else [tuple(path for group in groups for path in group)]

    def _layer(self, model: PreTrainedModel, path: str, linear: nn.Linear, seen: InputStatistics) -> LayerReport:
        bits, group, full = self.config.bits, self.group(linear), self.config.grid == "full"
        if not seen.tokens:
            q_NK, scale_NG = quantize_groups(linear.weight, bits, group, full=full)
            return self.exchange(model, path, linear, q_NK, scale_NG, strategy="not reached, rounded to nearest")
        hessian_KK = seen.hessian_KK
        found = compensate(
            linear.weight,
            hessian_KK,
            bits=bits,
            group=group,
            scale_NG=self._scales(linear, hessian_KK, group, full),
            full=full,
            damping=self.config.damping,
            block=self.config.block_columns,
            act_order=self.config.act_order,
            where=f"{self.plugin}: {path}",
        )
        return self.exchange(model, path, linear, found.q_NK, found.scale_NG, seen=seen)

    def _scales(self, linear: nn.Linear, hessian_KK: Tensor, group: int, full: bool) -> Tensor | None:
        if self.config.scales == "searched":
            return search_clipping(linear.weight, hessian_KK.diagonal(), bits=self.config.bits, group=group)
        if self.config.scales == "given":
            return group_scales(linear.weight, self.config.bits, group, full=full)
        return None
