"""Slot `adapter`: a few trainable parameters beside frozen weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot


class Adapter(Protocol):
    """The component: constructed as `Component(config)`; works on a `transformers.PreTrainedModel` in place."""

    def inject(self, model: Any, *, seed: int) -> list[str]:
        """Wrap the target modules, freeze every other parameter, and return the trainable parameters' names.

        Raises:
            FitError: no module matches the targets.
        """
        ...

    def on_step(self, step: int, steps: int) -> None:
        """Advance a schedule; called before optimizer step `step` of `steps`, with accumulation once."""
        ...

    def merge(self, model: Any) -> None:
        """Fold the adapter into the weights and unwrap the modules.

        Raises:
            FitError: the adapter cannot be folded in its present state.
        """
        ...

    def save(self, model: Any, folder: Path, base: str) -> None:
        """Write PEFT's files (adapter_config.json, adapter_model.safetensors); `base` names the base model."""
        ...

    def load(self, model: Any, folder: Path) -> None:
        """Read PEFT's files into an injected model.

        Raises:
            ArtifactError: files are missing or do not match the model.
        """
        ...


SLOT = Slot(
    name="adapter",
    version=1,
    sits_in=("train",),
    protocol=Adapter,
    config=ComponentConfig,
    summary="a few trainable parameters beside frozen weights",
    features={
        "merge": "can be folded into the weights",
        "peft": "reads and writes PEFT's files",
        "schedule": "changes with the step",
    },
)
