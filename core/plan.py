"""A plan: the resolved stack as data that `run`, `resume`, `diff`, the report and the site read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from stackloom.core.catalogue import Catalogue
from stackloom.core.cost import Cost
from stackloom.core.devices import Device
from stackloom.core.errors import ArtifactError, ConfigError, ErrorGroup, FitError, StackloomError
from stackloom.core.fit import Fit
from stackloom.core.shapes import ModelShape
from stackloom.core.stack import Resources

PLAN_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedComponent(_Part):
    """One resolved component.

    Attributes:
        path: where the stack names it ("stages[0].train.optimizer").
        plugin, distribution, version, digest: which code; `digest` covers the plugin folder's files.
        options: all options after defaults, nested components as references.
        fits: what its fit() said, and what this library checked for it.
        missing: requirements of the manifest that this environment does not meet; they stop a run, not a plan.
        cost: what it adds to one step.
    """

    path: str
    plugin: str
    distribution: str
    version: str
    digest: str
    lifecycle: str
    options: dict[str, Any]
    fits: tuple[Fit, ...]
    missing: tuple[str, ...]
    cost: Cost


class PlannedStage(_Part):
    """One stage with its sums.

    Attributes:
        options: the stage's own options.
        fits: what the stage itself says about its options and the model.
        seed: derived from the stack's seed and the stage's place.
        components: in the order of the stage's slots, nested ones after their owner.
        cost: per step and worker, model and components together.
        seconds: estimate for all steps, from the device's peak rates; None where the stage states no FLOPs.
    """

    index: int
    kind: str
    seed: int
    options: dict[str, Any]
    fits: tuple[Fit, ...]
    components: tuple[PlannedComponent, ...]
    cost: Cost
    seconds: float | None


class Clash(_Part):
    """Two components that do not go together.

    Attributes:
        kind: "node" for one module, "declared" for a manifest's [[conflicts]], "state" for what an earlier stage left.
        plugins: both ids, sorted.
        where: the stage, and the node if there is one.
    """

    kind: Literal["node", "declared", "state"]
    plugins: tuple[str, str]
    where: str
    reason: str


class Plan(_Part):
    """A resolved stack: everything that run, resume, diff, the report and the site read."""

    version: int = PLAN_VERSION
    name: str
    seed: int
    stack: dict[str, Any]
    device: Device
    resources: Resources
    shape: ModelShape
    model: tuple[PlannedComponent, ...]
    stages: tuple[PlannedStage, ...]
    trackers: tuple[PlannedComponent, ...]
    clashes: tuple[Clash, ...]

    def components(self) -> Iterator[PlannedComponent]:
        """Yield every component, the model's first."""
        yield from self.model
        for stage in self.stages:
            yield from stage.components
        yield from self.trackers

    @property
    def peak_bytes(self) -> float:
        """Memory of the stage that holds most."""
        return max(stage.cost.memory_bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Estimated time of all stages that have an estimate."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    def problems(self) -> list[FitError]:
        """Everything that makes the stack impossible: misfits, clashes, too little memory."""
        found = [
            FitError(fit.reason, where=f"{part.path} ({part.plugin})")
            for part in self.components()
            for fit in part.fits
            if not fit.ok
        ]
        found += [
            FitError(fit.reason, where=f"stages[{stage.index}].{stage.kind}")
            for stage in self.stages
            for fit in stage.fits
            if not fit.ok
        ]
        found += [FitError(clash.reason, where=clash.where) for clash in self.clashes]
        found += [
            FitError(
                f"needs {gib(stage.cost.memory_bytes)}, {self.device.title} has {gib(self.device.memory_bytes)}",
                where=f"stages[{stage.index}].{stage.kind}",
                fix="smaller micro_batch_size or sequence_length, activation_checkpointing, or another device",
            )
            for stage in self.stages
            if stage.cost.memory_bytes > self.device.memory_bytes
        ]
        return found

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way of a run on the planned device."""
        return not self.problems()

    def missing(self) -> list[str]:
        """Requirements that this environment does not meet, each once."""
        return list(dict.fromkeys(need for part in self.components() for need in part.missing))

    @property
    def digest(self) -> str:
        """sha256 of the plan's canonical JSON."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the plan as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a saved plan.

        Raises:
            ArtifactError: not readable, not JSON, or not a plan of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as cause:
            raise ArtifactError(f"cannot read the plan: {cause}", where=str(path)) from cause
        except ValidationError as error:
            first = error.errors()[0]
            raise ArtifactError(
                f"not a plan of version {PLAN_VERSION}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                where=str(path),
                fix="make it anew with `stackloom plan STACK --save FILE`",
            ) from None

    def verify(self, catalogue: Catalogue) -> None:
        """Refuse a plan whose plugins are no longer the ones it was made with.

        Raises:
            ErrorGroup: every plugin that is gone or whose distribution, version or files changed.
        """
        drift: list[StackloomError] = []
        for plugin, part in sorted({part.plugin: part for part in self.components()}.items()):
            try:
                record = catalogue.get(plugin)
            except StackloomError as error:
                drift.append(error)
                continue
            planned, found = (part.distribution, part.version), (record.distribution, record.version)
            if planned != found:
                drift.append(ConfigError(f"planned: {' '.join(planned)}, installed: {' '.join(found)}", where=plugin))
            elif part.digest != record.digest:
                drift.append(
                    ConfigError(
                        f"its files changed since the plan was made ({part.digest[:9]} then, {record.digest[:9]} now)",
                        where=plugin,
                    )
                )
        if drift:
            raise ErrorGroup(
                drift, f"plan {self.name!r} no longer matches what is installed; make it anew with `stackloom plan`"
            )


def gib(size: float) -> str:
    """Write bytes for people: 1.5 GiB, 12 MiB."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}" if size < 1000 * scale else f"{size / scale:.0f} {unit}"
    return f"{size:.0f} B"
