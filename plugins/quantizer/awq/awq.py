"""AWQ: columns that meet loud inputs are scaled up before rounding, and grids shrink where that helps the output.

Shape legend: N out features, K in features, G groups of a row, g weights of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stackloom.core.slots.quantizer import LayerReport, Progress, quiet
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.awq.config import AWQConfig
from stackloom.plugins.quantizer.blocks import decoder_blocks, walk
from stackloom.plugins.quantizer.calibration import (
    InputStatistics,
    Observer,
    checked,
    refuse_outside,
    refuse_unreached,
)
from stackloom.plugins.quantizer.equalization import Site, find_sites, fold, provable
from stackloom.plugins.quantizer.grid import dequantize_groups, group_scales, quantize_groups, round_to
from stackloom.plugins.quantizer.linear_quantizer import LinearQuantizer

SAMPLE = 256  # inputs of a layer on which its error is measured
TRIAL = 16  # tokens on which folds are tried
SMALLEST = 1e-4  # of a channel's magnitude, as in the authors' code


@dataclass(frozen=True)
class Prepared:
    """What is known of a layer when its block was calibrated.

    Attributes:
        scale: (N, G) of the grid after clipping; None for those of the largest magnitudes.
        divided_by: (K,) scales that were folded out of its inputs, or None.
        seen: its inputs; None where none came.
    """

    scale: Tensor | None
    divided_by: Tensor | None
    seen: InputStatistics | None


class AWQ(LinearQuantizer[AWQConfig]):
    """Searches scales and clipping on the float model, block by block, then rounds to nearest.

    Args:
        config: the plugin's options.

    Example:
        >>> quantizer = AWQ(AWQConfig())
        >>> [report.output_error for report in quantizer.quantize(model, calibration)]
    """

    plugin = "quantizer.awq"

    @torch.no_grad()
    def equalize(self, model: PreTrainedModel, calibration: Sequence[Tensor]) -> None:
        """Fold the scales that the search finds, in place, without changing what the model computes.

        Raises:
            FitError: as `quantize`.
        """
        self._prepare(model, calibration, quiet)

    @torch.no_grad()
    def quantize(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], progress: Progress = quiet
    ) -> list[LayerReport]:
        """Search and fold scales, search clipping, and quantize the selected layers.

        Args:
            model: changed in place. Selection and weights are checked before the first change; inputs that are not
                finite or never come are found when their block is reached.
            calibration: token ids (T,).
            progress: called after each layer is searched, and after each is quantized.

        Raises:
            FitError: no layer is selected, one is quantized, tied, not finite, does not divide into groups, lies
                outside of the decoder's blocks or is never reached.
        """
        prepared = self._prepare(model, calibration, progress)
        bits, full = self.config.bits, self.config.grid == "full"
        reports = []
        for path, linear in self.linears(model).items():
            known = prepared[path]
            if known.scale is None:
                q_NK, scale_NG = quantize_groups(linear.weight, bits, self.group(linear), full=full)
            else:
                q_NK, scale_NG = round_to(linear.weight, known.scale, bits), known.scale
            report = self.exchange(
                model,
                path,
                linear,
                q_NK,
                scale_NG,
                seen=known.seen,
                divided_by=known.divided_by,
                strategy="" if known.seen else "not reached, rounded to nearest",
            )
            reports.append(report)
            progress(len(prepared) + len(reports), 2 * len(prepared))
        return reports

    def _prepare(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], progress: Progress
    ) -> dict[str, Prepared]:
        linears = self.linears(model)
        layers.check_weights(linears, self.plugin)
        sequences = checked(calibration, model, self.plugin)
        refuse_outside(linears, decoder_blocks(model, self.plugin), self.plugin)
        sites = [
            site if site.kind in ("", *self.config.fold) else Site(site.layers) for site in find_sites(model, linears)
        ]
        sites = provable(model, sites, sequences[0][:TRIAL])
        prepared: dict[str, Prepared] = {}
        for block in walk(model, sequences, self.plugin):
            inside = {path: linear for path, linear in linears.items() if path.startswith(f"{block.path}.")}
            with Observer(inside, sequences=len(sequences), hessian=True, sample=SAMPLE, where=self.plugin) as seen:
                block.outputs()
            if self.config.unreached == "refuse":
                refuse_unreached(seen.unreached, self.plugin)
            for site in (site for site in sites if site.layers[0] in inside):
                prepared |= self._site(model, site, inside, seen.statistics)
                progress(len(prepared), 2 * len(linears))
        return prepared

    def _site(
        self,
        model: PreTrainedModel,
        site: Site,
        linears: Mapping[str, nn.Linear],
        all_seen: Mapping[str, InputStatistics],
    ) -> dict[str, Prepared]:
        """Fold the best scales of a site, and search its layers' clipping."""
        reached = [path for path in site.layers if all_seen[path].tokens]
        if not reached:
            return {path: Prepared(None, None, None) for path in site.layers}
        seen = all_seen[reached[0]]
        hessian_KK, scale_K = seen.hessian_KK, None
        if site.kind:
            scale_K = self._best(site, seen, hessian_KK, [linears[path] for path in site.layers])
            fold(model, site, scale_K)
            scale_K = scale_K.float()
            hessian_KK = hessian_KK / scale_K / scale_K[:, None]
        found = {}
        for path in site.layers:
            clips = self.config.clip and not any(fnmatchcase(path, each) for each in self.config.clip_exclude)
            found[path] = Prepared(
                self._clipped(linears[path], hessian_KK) if clips else None,
                scale_K,
                all_seen[path] if all_seen[path].tokens else None,
            )
        return found

    def _best(self, site: Site, seen: InputStatistics, hessian_KK: Tensor, readers: Sequence[nn.Linear]) -> Tensor:
        """Return the scales (K,) whose rounded weights lose least of the layers' outputs."""
        best_K, least = torch.ones_like(seen.low_K).double(), torch.inf
        for place in range(self.config.strengths):
            scale_K = site.tied(strength_scale(seen.mean_magnitude_K, place / self.config.strengths))
            lost = 0.0
            for linear in readers:
                scaled_NK = linear.weight.double() * scale_K
                q_NK, scale_NG = quantize_groups(
                    scaled_NK, self.config.bits, self.group(linear), full=self.config.grid == "full"
                )
                off_NK = ((dequantize_groups(q_NK, scale_NG, torch.float64) - scaled_NK) / scale_K).float()
                lost += ((off_NK @ hessian_KK) * off_NK).sum().item()
            if lost < least:
                best_K, least = scale_K, lost
        return best_K

    def _clipped(self, linear: nn.Linear, hessian_KK: Tensor) -> Tensor:
        config = self.config
        shrunk = [step / config.clip_steps for step in range(config.clip_steps)]
        return clipped_scales(
            linear.weight,
            hessian_KK,
            config.bits,
            self.group(linear),
            [1 - step for step in shrunk if 1 - step >= config.clip_lowest],
            full=config.grid == "full",
        )


def strength_scale(magnitude_K: Tensor, strength: float) -> Tensor:
    """Return t = magnitude^strength / sqrt(max t * min t) (K,) float64, positive; all ones for strength 0.

    Source: AWQ (arXiv 2306.00978), equation 5; the authors' code for the normalisation.
    """
    scale_K = magnitude_K.double().clamp_min(SMALLEST) ** strength
    return scale_K / (scale_K.max() * scale_K.min()).sqrt()


def clipped_scales(
    weight_NK: Tensor, hessian_KK: Tensor, bits: int, group: int, ratios: Sequence[float], *, full: bool
) -> Tensor:
    """Return per row and group the unclipped scale times the ratio with the least error of the group's output.

    A group's error is `(w - v) H_g (w - v)'` with H_g its diagonal block of the Hessian: other groups are taken as
    exact.

    Args:
        weight_NK: (N, K) floats.
        hessian_KK: (K, K) second moments of the inputs.
        bits, group, full: of the grid.
        ratios: to try.

    Returns:
        (N, G) float32.
    """
    rows, columns = weight_NK.shape
    groups = columns // group
    blocks_Ggg = torch.stack(
        [hessian_KK[place : place + group, place : place + group] for place in range(0, columns, group)]
    )
    weight_GNg = weight_NK.float().reshape(rows, groups, group).transpose(0, 1)
    widest_NG = group_scales(weight_NK, bits, group, full=full)
    best_NG, least_NG = widest_NG, torch.full_like(widest_NG, torch.inf)
    for ratio in ratios:
        scale_NG = widest_NG * ratio
        rounded_NK = dequantize_groups(round_to(weight_NK, scale_NG, bits), scale_NG, torch.float32)
        off_GNg = rounded_NK.reshape(rows, groups, group).transpose(0, 1) - weight_GNg
        lost_NG = ((off_GNg @ blocks_Ggg) * off_GNg).sum(2).t()
        best_NG = torch.where(lost_NG < least_NG, scale_NG, best_NG)
        least_NG = torch.minimum(least_NG, lost_NG)
    return best_NG
