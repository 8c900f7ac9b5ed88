"""OdysseyLLM's recipe: per-channel W4A8 with symmetric learned clipping, then Hessian compensation.

Shape legend: N out features, K in features, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stackloom.core.errors import FitError
from stackloom.core.slots.quantizer import LayerReport, Progress, quiet
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.blocks import Block, decoder_blocks, walk
from stackloom.plugins.quantizer.calibration import InputStatistics, Observer, checked, refuse_unreached
from stackloom.plugins.quantizer.clipping import Learning, learn_clipping, search_clipping
from stackloom.plugins.quantizer.grid import dequantize_groups, group_scales, round_to, snr_db
from stackloom.plugins.quantizer.hessian import compensate
from stackloom.plugins.quantizer.odyssey.config import LONGEST_ROW, OdysseyConfig
from stackloom.plugins.quantizer.odyssey.sixteenfold import SixteenfoldLinear
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear, describe

ID, BITS = "quantizer.odyssey", 4
SAMPLE = 256  # inputs of a layer that its output error is measured on


class Odyssey:
    """Quantizes a model's linear layers in place, block by block, each on the inputs that the quantized prefix gives.

    Args:
        config: the plugin's options.

    Example:
        >>> quantizer = Odyssey(OdysseyConfig(clipping="search"))
        >>> quantizer.quantize(model, sequences)[0].scheme
        'W4 per channel, A8 per token'
    """

    def __init__(self, config: OdysseyConfig) -> None:
        self.config = config

    @torch.no_grad()
    def quantize(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], progress: Progress = quiet
    ) -> list[LayerReport]:
        """Clip, compensate and exchange the selected layers. Every check of the weights comes before the first change.

        Args:
            model: changed in place.
            calibration: token ids (T,); more tokens than a layer has in features, or compensation has little to go by.
            progress: called after each layer.

        Raises:
            FitError: no calibration data, none or an unfit layer selected, inputs or losses that are not finite, a
                layer that no token reaches, a Hessian that no damping makes positive definite.
        """
        linears = self._linears(model)
        layers.check_weights(linears, ID)
        sequences = checked(calibration, model, ID)
        reports: dict[str, LayerReport] = {}
        float_inputs: list[Tensor] | None = None
        for block in walk(model, sequences, ID):
            inside = {path: linear for path, linear in linears.items() if path.startswith(f"{block.path}.")}
            scales: dict[str, Tensor] = {}
            if self.config.clipping == "learned":
                float_inputs = float_inputs or block.inputs
                targets = block.outputs(float_inputs)
                scales = self._learned(block, inside, float_inputs, targets)
                float_inputs = targets
            for path, q_NK, scale_NG, inputs in self._rounded(block, inside, scales):
                reports[path] = self._exchange(model, path, inside[path], q_NK, scale_NG, inputs)
                progress(len(reports), len(linears))
        return [reports[path] for path in linears]

    def rebuild(self, model: PreTrainedModel) -> None:
        """Put empty quantized layers where `quantize` would put them, so that a saved state can be loaded.

        Raises:
            FitError: as `quantize`, but for values and calibration.
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
        blocks = tuple(f"{path}." for path in decoder_blocks(model, ID))
        for path, linear in found.items():
            if not path.startswith(blocks):
                raise FitError(f"{path} lies outside of the decoder's blocks", where=ID, fix="exclude it")
            if linear.in_features % 2 or linear.in_features > LONGEST_ROW:
                raise FitError(
                    f"{path} has {linear.in_features} in features, needed is an even number up to {LONGEST_ROW}",
                    where=ID,
                    fix="exclude it",
                )
        return found

    def _empty(self, linear: nn.Linear) -> QuantizedLinear:
        kind = SixteenfoldLinear if self.config.group is None else QuantizedLinear
        group = self.config.group or linear.in_features
        return kind.like(linear, bits=BITS, group=group, int8_activations=True)

    def _learned(
        self, block: Block, linears: Mapping[str, nn.Linear], float_inputs: list[Tensor], targets: list[Tensor]
    ) -> dict[str, Tensor]:
        config = self.config
        learning = Learning(
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            initial_logit=config.initial_logit,
            int8_activations=config.clip_int8_activations,
            auxiliary=config.auxiliary_loss,
        )
        names = {path.removeprefix(f"{block.path}."): linear for path, linear in linears.items()}
        scales, _ = learn_clipping(
            block, names, float_inputs, targets, bits=BITS, group=config.group, learning=learning
        )
        return {f"{block.path}.{name}": scale_NG for name, scale_NG in scales.items()}

    def _rounded(
        self, block: Block, linears: Mapping[str, nn.Linear], scales: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor, InputStatistics]]:
        """Yield (path, q, scale, inputs) in running order; whoever takes them exchanges each layer at once."""
        seen = self._observed(block, linears)
        refuse_unreached(seen.unreached, ID)
        for number, paths in enumerate(seen.groups):
            if number and self.config.observe == "layer":
                seen = self._observed(block, {path: linears[path] for path in paths})
            inputs = seen.statistics[paths[0]]
            for path in paths:
                scale_NG = self._scale(linears[path], scales.get(path), inputs)
                yield path, *self._integers(path, linears[path], scale_NG, inputs), inputs

    def _integers(
        self, path: str, linear: nn.Linear, scale_NG: Tensor, inputs: InputStatistics
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        if not config.compensate:
            return round_to(linear.weight, scale_NG, BITS), scale_NG
        rounded = compensate(
            linear.weight,
            inputs.hessian_KK,
            bits=BITS,
            group=config.group or linear.in_features,
            scale_NG=scale_NG,
            damping=config.damping,
            block=config.block_columns,
            act_order=config.act_order,
            where=path,
        )
        return rounded.q_NK, rounded.scale_NG

    def _observed(self, block: Block, linears: Mapping[str, nn.Linear]) -> Observer:
        hessian = self.config.compensate or self.config.clipping == "search"
        with Observer(linears, sequences=len(block.inputs), hessian=hessian, sample=SAMPLE, where=ID) as seen:
            block.outputs()
        return seen

    def _scale(self, linear: nn.Linear, learned_NG: Tensor | None, inputs: InputStatistics) -> Tensor:
        group = self.config.group or linear.in_features
        if learned_NG is not None:
            return learned_NG
        if self.config.clipping == "none":
            return group_scales(linear.weight, BITS, group)
        return search_clipping(
            linear.weight,
            inputs.hessian_KK.diagonal(),
            bits=BITS,
            group=group,
            lowest=self.config.search_lowest,
            points=self.config.search_points,
        )

    def _exchange(
        self,
        model: PreTrainedModel,
        path: str,
        linear: nn.Linear,
        q_NK: Tensor,
        scale_NG: Tensor,
        inputs: InputStatistics,
    ) -> LayerReport:
        layer = self._empty(linear)
        layer.put(q_NK, scale_NG, linear.bias)
        layers.put(model, path, layer)
        return layers.report(
            path,
            linear,
            layer,
            describe(BITS, layer.group, layer.in_features, True),
            snr_db(linear.weight, dequantize_groups(q_NK, scale_NG, torch.float64)),
            strategy="per token",
            activation_range=inputs.range,
            output_error=layers.output_error(linear, layer, inputs.sample_SK),
        )
