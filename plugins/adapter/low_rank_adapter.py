"""The adapter of two thin matrices beside frozen linear layers: injecting, folding, PEFT's files.

A technique says which layer it wraps with (`_wrapper`), and what a step changes (`on_step`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from stackloom.core.errors import FitError
from stackloom.plugins.adapter import low_rank, peft_files
from stackloom.plugins.adapter.low_rank_config import LowRankConfig


class LowRankAdapter:
    """Base of `adapter.lora` and `adapter.afa-lora`.

    Args:
        config: the plugin's options.
    """

    plugin: ClassVar[str]

    def __init__(self, config: LowRankConfig) -> None:
        self.config = config
        self._flags: list[tuple[nn.Parameter, bool]] = []

    def inject(self, model: PreTrainedModel, *, seed: int) -> list[str]:
        """Wrap the targets, freeze every other parameter, and return the trainable parameters' names.

        The outputs stay bit-equal until the first update, because B is zero.

        Args:
            model: changed in place.
            seed: of A; the same on every device and for every dtype.

        Raises:
            FitError: a pattern names no linear layer, an embedding or a tied weight; or there is an adapter already.
        """
        targets = low_rank.find_targets(model, self.config.targets, self.plugin)
        self._flags = low_rank.wrap(model, targets, self._wrapper, init=self.config.init, seed=seed)
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def on_step(self, step: int, steps: int) -> None:
        """Do nothing: there is no schedule."""

    def merge(self, model: PreTrainedModel) -> None:
        """Fold scaling * B A into the weights and put the plain layers back.

        The sum is made in float64 and rounded once: each weight is within half a unit in its last place of the exact
        one. Parameters get back the requires_grad that they had before `inject` of the same object.

        Raises:
            FitError: nothing is injected, or a folded weight is not finite (nothing has changed then).
        """
        low_rank.fold(model, self.plugin)
        low_rank.restore(self._flags)
        self._flags = []

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors as PEFT does.

        Args:
            model: injected.
            folder: made if it is not there.
            base: name or path of the base model, for PEFT.

        Raises:
            FitError: nothing is injected, or a matrix is not finite.
        """
        peft_files.write(folder, self._finite_matrices(model), self._peft_fields(model, base))

    @torch.no_grad()
    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Read PEFT's files into an injected model. All or nothing.

        Raises:
            FitError: nothing is injected.
            ArtifactError: a file is missing, damaged, foreign, or does not fit the adapter; names the tensor or field.
        """
        ours = dict(low_rank.matrices(model, self.plugin))
        peft_files.read_config(folder, self._expected_fields())
        self._fill(ours, folder)

    @torch.no_grad()
    def _fill(self, ours: dict[str, nn.Parameter], folder: Path) -> None:
        stored = peft_files.read_tensors(folder, {name: parameter.shape for name, parameter in ours.items()})
        for name, parameter in ours.items():
            parameter.copy_(stored[name])

    def _finite_matrices(self, model: nn.Module) -> dict[str, nn.Parameter]:
        tensors = dict(low_rank.matrices(model, self.plugin))
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise FitError(f"{name} is not finite", where=self.plugin, fix="use an earlier checkpoint")
        return tensors

    def _peft_fields(self, model: nn.Module, base: str) -> dict[str, Any]:
        """What adapter_config.json says."""
        return {
            "auto_mapping": None,
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True if self.config.init == "kaiming" else self.config.init,
            "lora_alpha": self._alpha,
            "lora_dropout": self.config.dropout,
            "modules_to_save": None,
            "r": self.config.rank,
            "target_modules": _target_modules(model),
            "task_type": "CAUSAL_LM",
            "use_rslora": self.config.rslora,
        }

    def _expected_fields(self) -> dict[str, Any]:
        """What adapter_config.json must say to be loaded."""
        return {"r": self.config.rank, "lora_alpha": self._alpha, "use_rslora": self.config.rslora}

    @property
    def _alpha(self) -> float:
        """Alpha as PEFT writes it: an integer where it is one."""
        return int(self.config.alpha) if self.config.alpha.is_integer() else self.config.alpha

    def _wrapper(self, linear: nn.Linear) -> low_rank.LowRankLinear:
        """Return the layer that goes around `linear`."""
        return low_rank.LowRankLinear(linear, **self._sizes(linear))

    def _sizes(self, linear: nn.Linear) -> dict[str, Any]:
        """What a wrapper around `linear` is made with."""
        own = linear.weight.dtype
        return {
            "rank": self.config.rank,
            "scaling": self.config.scaling,
            "dropout": self.config.dropout,
            "dtype": torch.promote_types(own, torch.float32) if self.config.dtype == "float32" else own,
        }


def _target_modules(model: nn.Module) -> list[str]:
    """Return what PEFT should match: the last names where they name the wrapped layers and nothing else, else paths."""
    paths = set(low_rank.wrapped(model))
    ends = {path.rpartition(".")[2] for path in paths}
    everything = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in ends}
    return sorted(ends if everything == paths else paths)
