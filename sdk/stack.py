"""The Python spelling of a stack, and plans that print themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stackloom.core import plan as plans
from stackloom.core import planning
from stackloom.core.catalogue import Catalogue
from stackloom.core.config import ComponentConfig
from stackloom.core.ref import Ref
from stackloom.core.stack import StackSpec, StageSpec

if TYPE_CHECKING:
    from stackloom.run.runner import Display, Run


class Plan(plans.Plan):
    """A plan that prints as a table."""

    def __str__(self) -> str:
        from stackloom.plan_table import plan_text

        return plan_text(self)

    def run(
        self,
        *,
        folder: str | Path | None = None,
        display: Display | None = None,
        executor: str = "local",
        address: str | None = None,
    ) -> Run:
        """Run the plan, or go on with it where it stopped; writes report.html at the end.

        Args:
            folder: for everything it makes; runs/<name>-<digest> if absent.
            display: what is told about progress; silent if absent.
            executor: who starts the workers of a stage: "local" (processes of this machine) or "ray".
            address: of a Ray cluster; None starts one on this machine, on loopback, with a token.

        Raises:
            FitError: the stack cannot work, or a worker was lost.
            ConfigError: requirements are missing, plugins changed, the folder is taken, or the executor cannot be used.
        """
        from stackloom.registry import open_registry
        from stackloom.report import write_report
        from stackloom.run import runner

        place = Path(folder) if folder else runner.default_folder(self)
        with open_registry() as registry:
            try:
                made = runner.run(self, registry, folder=place, display=display, executor=executor, address=address)
            except Exception:
                if runner.holds(place, self):
                    write_report(place, registry)
                raise
            write_report(made.folder, registry)
        return made

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON and return the path."""
        target = Path(path)
        target.write_text(self.to_json(), encoding="utf-8")
        return target


class Stack:
    """A stack of plugins: a model and the stages it goes through.

    Args:
        name: of the stack and of its runs.
        model: reference to a model plugin, or its config object.
        stages: in order; `train(...)`, `transform(...)`, `quantize(...)`, `evaluate(...)`, `export(...)`.
        trackers: plugins that listen to the run.
        seed: every random choice derives from it.
        sweep: values by the path of an option, for `stackloom.sweep` and for `stackloom run` of the stack's YAML.
        resources: device, dtype, workers, shard, activation_checkpointing.

    Raises:
        ConfigError: every problem of the stack's frame at once.
    """

    def __init__(
        self,
        name: str,
        *,
        model: Ref | ComponentConfig,
        stages: Sequence[StageSpec],
        trackers: Sequence[Ref | ComponentConfig] = (),
        seed: int = 0,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        **resources: Any,
    ) -> None:
        frame = {"name": name, "seed": seed, "resources": resources, "model": model, "sweep": dict(sweep or {})}
        self.spec = StackSpec.from_data(frame | {"stages": list(stages), "trackers": list(trackers)}, name)

    @classmethod
    def _of(cls, spec: StackSpec) -> Self:
        stack = cls.__new__(cls)
        stack.spec = spec
        return stack

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a stack from a YAML file."""
        return cls._of(StackSpec.from_file(Path(path)))

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read a stack from YAML text."""
        return cls._of(StackSpec.from_yaml(text))

    def to_yaml(self) -> str:
        """Return the stack as YAML that `from_yaml` reads back."""
        return self.spec.to_yaml()

    def plan(self, *, device: str | None = None, catalogue: Catalogue | None = None) -> Plan:
        """Resolve the stack: what fits, what clashes, what it costs. Needs no torch and no GPU.

        Args:
            device: a name of the device table ("h100", "cpu"); None takes the stack's own.
            catalogue: where plugins are found; None opens the local registry.

        Raises:
            ConfigError: unknown plugins or bad options, all of them.
            PluginError: a chosen plugin breaks its contract.
        """
        from stackloom.registry import open_registry
        from stackloom.registry.discovery import unmet

        if catalogue is not None:
            made = planning.plan(self.spec, catalogue, device=device, unmet=unmet)
        else:
            with open_registry() as registry:
                made = planning.plan(self.spec, registry, device=device, unmet=unmet)
        return Plan(**dict(made))

    def __repr__(self) -> str:
        kinds = [stage.kind for stage in self.spec.stages]
        return f"Stack({self.spec.name!r}, model={self.spec.model.use!r}, stages={kinds})"


def stage(kind: str, **options: Any) -> StageSpec:
    """Return a stage of any kind: `stage("train", steps=10, ...)`."""
    return StageSpec(kind=kind, options=options)


def quantize(**options: Any) -> StageSpec:
    """Return a quantize stage; its options are listed by `stackloom show quantize --schema`."""
    return stage("quantize", **options)


def evaluate(**options: Any) -> StageSpec:
    """Return an evaluate stage; its options are listed by `stackloom show evaluate --schema`."""
    return stage("evaluate", **options)


def export(**options: Any) -> StageSpec:
    """Return an export stage; its options are listed by `stackloom show export --schema`."""
    return stage("export", **options)


def train(**options: Any) -> StageSpec:
    """Return a train stage; its options are listed by `stackloom show train`."""
    return stage("train", **options)


def transform(**options: Any) -> StageSpec:
    """Return a transform stage; its options are listed by `stackloom show transform --schema`."""
    return stage("transform", **options)
