"""What a claim works with: other plugins, whole stacks, models, data, seeds and a clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackloom.core.catalogue import Catalogue
from stackloom.core.config import ComponentConfig
from stackloom.core.loading import blamed, load_config, validate_options
from stackloom.core.rows import Scale
from stackloom.registry import Registry

if TYPE_CHECKING:
    from stackloom.run.runner import Run

DEVICES = {"cpu": "cpu", "cpu-full": "cpu", "gpu": "cuda"}


class Watcher:
    """What a user sees of claims; this one is silent."""

    def say(self, text: str) -> None:
        """A claim tells something."""

    def step(self, text: str) -> None:
        """Something moved; may be dropped."""


@dataclass(eq=False)
class Workbench:
    """Implements `core.claims.ClaimContext` for one claim.

    Attributes:
        registry: where plugins are found and runs are recorded.
        scale, seeds: what was asked for.
        budget: seconds that the claim may take.
        runs: folder of the stacks that claims have run, each under its plan's digest.
        watcher: who is told about progress.
        used: ids of the plugins that entered the measurement.
    """

    registry: Registry
    scale: Scale
    seeds: Sequence[int]
    budget: float
    runs: Path
    watcher: Watcher
    used: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """Torch device type."""
        return DEVICES[self.scale]

    @property
    def seconds(self) -> float:
        """What the claim has taken so far."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float:
        """What remains of the budget; negative beyond it."""
        return self.budget - self.seconds

    def component(self, plugin: str, /, *dependencies: Any, **options: Any) -> Any:
        """Build a component of any installed plugin.

        Raises:
            ConfigError: it is not installed, or options are bad.
            PluginError: its code fails.
        """
        config = resolve(self.registry, plugin, options)
        self.used |= {plugin, *_nested(config)}
        with blamed(self.registry.get(plugin), "building it"):
            return config.build(*dependencies)

    def run(self, stack: Any) -> Run:
        """Run a stack in a folder named after its plan, or find it finished there.

        Raises:
            StackloomError: whatever planning or running it raises.
        """
        from stackloom.core import planning
        from stackloom.core.stack import StackSpec
        from stackloom.registry.discovery import unmet
        from stackloom.run import runner

        spec = getattr(stack, "spec", None) or StackSpec.from_data({"name": "repro"} | dict(stack), "a claim's stack")
        device = "cpu" if self.device == "cpu" and spec.resources.device == "auto" else None
        plan = planning.plan(spec, self.registry, device=device, unmet=unmet)
        self.used |= {part.plugin for part in plan.components()}
        return runner.run(plan, self.registry, folder=self.runs / plan.digest[:24], display=_display(self.watcher))

    def model(self, checkpoint: str, /, *, dtype: str = "float32") -> tuple[Any, Any]:
        """Return (model, tokenizer) of a folder or of a checkpoint that `model.hf` knows.

        Raises:
            ConfigError: no such checkpoint.
            ArtifactError: its files are missing or damaged.
        """
        builder = self.component("model.hf", checkpoint=checkpoint)
        return builder.load(device=self.device, dtype=dtype), builder.tokenizer()

    def data(
        self, plugin: str, tokenizer: Any, /, *, sequences: int = 64, sequence_length: int = 512, **options: Any
    ) -> Sequence[Any]:
        """Return token sequences of exactly that length, 1-D int64.

        Raises:
            ConfigError: the data has not one.
        """
        from stackloom.run import quantize

        return quantize.sequences(self.component(plugin, tokenizer, **options), sequences, sequence_length)

    def say(self, text: str) -> None:
        """Tell the user how far the claim is."""
        self.watcher.say(text)


def resolve(catalogue: Catalogue, plugin: str, options: Mapping[str, Any]) -> ComponentConfig:
    """Return a plugin's validated config, nested references resolved.

    Raises:
        ErrorGroup: every bad option.
    """
    config = validate_options(load_config(catalogue.get(plugin)), options, plugin)
    nested = {
        name: resolve(catalogue, value.use, value.options)
        for name, _, value in config.nested()
        if not isinstance(value, ComponentConfig)
    }
    return config.model_copy(update=nested)


def _nested(config: ComponentConfig) -> Iterator[str]:
    for _, _, value in config.nested():
        if isinstance(value, ComponentConfig):
            yield value.plugin_id
            yield from _nested(value)


def _display(watcher: Watcher) -> Any:
    from stackloom.run.runner import Display

    class Relay(Display):
        """Passes a run's progress on."""

        def stage(self, index: int, kind: str, state: str, seconds: float = 0.0) -> None:
            watcher.step(f"stage {index} {kind}: {state}")

        def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
            watcher.step(f"step {step} of {steps}")

        def say(self, line: str) -> None:
            watcher.say(line)

    return Relay()
