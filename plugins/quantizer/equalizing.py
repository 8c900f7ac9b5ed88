"""What quantizers have in common that look at the whole float model once, move scales between weights, then round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stackloom.core.slots.quantizer import LayerReport, Progress, quiet
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.calibration import (
    InputStatistics,
    Observer,
    checked,
    refuse_unreached,
    run_model,
)
from stackloom.plugins.quantizer.equalization import Site, find_sites, fold, provable
from stackloom.plugins.quantizer.grid import quantize_groups
from stackloom.plugins.quantizer.linear_config import CalibratedConfig
from stackloom.plugins.quantizer.linear_quantizer import Config, LinearQuantizer

SAMPLE = 256  # inputs of a layer on which its error is measured
TRIAL = 16  # tokens on which folds are tried


@dataclass(frozen=True)
class Treatment:
    """What is done about one site's inputs.

    Attributes:
        divided_by: (K,) float64 scales; None leaves them.
        input_range: largest magnitude of a static grid after that; 0 for a grid per token.
        note: for the report, in the place of the usual words.
    """

    divided_by: Tensor | None = None
    input_range: float = 0.0
    note: str = ""


class EqualizingQuantizer(LinearQuantizer[Config]):
    """Base of a quantizer; a subclass brings `treat`, and `config.folded_sites` says where scales may go."""

    config: CalibratedConfig  # type: ignore[assignment]
    full = False  # which grid the weights get

    def treat(self, site: Site, seen: InputStatistics, weights: Sequence[Tensor]) -> Treatment:
        """Decide about a site that calibration reached.

        Args:
            site: one without a producer can absorb no scale.
            seen: its inputs.
            weights: (N, K) of the layers to quantize that read it.

        Raises:
            FitError: it cannot be treated as the options ask.
        """
        raise NotImplementedError

    def sequences(self, model: PreTrainedModel, calibration: Sequence[Tensor]) -> list[Tensor]:
        """Return the token sequences to calibrate on.

        Raises:
            FitError: there are none, or they are no token ids of this model.
        """
        return checked(calibration, model, self.plugin)

    @torch.no_grad()
    def equalize(self, model: PreTrainedModel, calibration: Sequence[Tensor]) -> None:
        """Move scales between the float weights, in place, without changing what the model computes.

        Raises:
            FitError: as `quantize`.
        """
        self._equalize(model, calibration, lambda: None)

    @torch.no_grad()
    def quantize(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], progress: Progress = quiet
    ) -> list[LayerReport]:
        """Calibrate, equalize and quantize. Every check comes before the first change.

        Args:
            model: changed in place; one layer is held twice at a time.
            calibration: token ids (T,).
            progress: called after each sequence and each layer.

        Raises:
            FitError: no layer is selected, one is quantized, tied, not finite, does not divide into groups, has inputs
                that are not finite or never come, or cannot be treated as the options ask.
        """
        done, total = 0, len(self.linears(model)) + len(self.sequences(model, calibration))

        def step() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        linears, treated, seen = self._equalize(model, calibration, step)
        reports = []
        for path, linear in linears.items():
            q_NK, scale_NG = quantize_groups(linear.weight, self.config.bits, self.group(linear), full=self.full)
            treatment = treated[path]
            reports.append(
                self.exchange(
                    model,
                    path,
                    linear,
                    q_NK,
                    scale_NG,
                    seen=seen[path],
                    divided_by=None if treatment.divided_by is None else treatment.divided_by.float(),
                    input_range=treatment.input_range,
                    strategy=treatment.note,
                )
            )
            step()
        return reports

    def _equalize(
        self, model: PreTrainedModel, calibration: Sequence[Tensor], step: Callable[[], None]
    ) -> tuple[dict[str, nn.Linear], dict[str, Treatment], Mapping[str, InputStatistics]]:
        """Return the layers, and by their paths what was done about their inputs and what these were."""
        linears = self.linears(model)
        layers.check_weights(linears, self.plugin)
        sequences = self.sequences(model, calibration)
        with Observer(linears, sequences=len(sequences), sample=SAMPLE, where=self.plugin) as seen:
            run_model(model, sequences, step)
        if self.config.unreached == "refuse":
            refuse_unreached(seen.unreached, self.plugin)
        treatments: dict[Site, Treatment] = {}
        for site in provable(model, self._sites(model, linears), sequences[0][:TRIAL]):
            reached = [path for path in site.layers if seen.statistics[path].tokens]
            treatments[site] = (
                self.treat(site, seen.statistics[reached[0]], [linears[path].weight for path in site.layers])
                if reached
                else Treatment(note="not reached, rounded to nearest")
            )
        for site, treatment in treatments.items():
            if treatment.divided_by is not None:
                fold(model, site, treatment.divided_by)
        by_path = {path: treatment for site, treatment in treatments.items() for path in site.layers}
        return linears, by_path, seen.statistics

    def _sites(self, model: PreTrainedModel, linears: Mapping[str, nn.Linear]) -> list[Site]:
        allowed = ("", *self.config.folded_sites)
        return [site if site.kind in allowed else Site(site.layers) for site in find_sites(model, linears)]
