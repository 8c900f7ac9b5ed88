"""What a stage gets to work with: its plan, the model so far, a folder, and somewhere to report to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackloom.artifacts import Artifact, read
from stackloom.core.catalogue import Catalogue
from stackloom.core.config import ComponentConfig
from stackloom.core.errors import ArtifactError, FitError, StackloomError
from stackloom.core.loading import blamed, load_config
from stackloom.core.plan import Plan, PlannedComponent, PlannedStage
from stackloom.core.stages import STAGES, StageConfig

Report = Callable[[int, int, dict[str, float]], None]  # step, steps, values


@dataclass
class StageContext:
    """One stage of one run.

    Attributes:
        run: id of the run.
        plan, stage: what to do.
        key: content address of the stage's inputs, options and code.
        folder: for checkpoints and other files that are not the artifact.
        target: where the artifact goes.
        lineage: the artifacts that made the model so far, oldest first.
        catalogue: where plugins are found.
        metrics: takes (step, values) for the ledger and every tracker.
        progress: takes (step, steps, values) for the live display.
        say: takes a line for the user.
    """

    run: str
    plan: Plan
    stage: PlannedStage
    key: str
    folder: Path
    target: Path
    lineage: tuple[Artifact, ...]
    catalogue: Catalogue
    metrics: Callable[[int, dict[str, float]], None] = lambda step, values: None
    progress: Report = lambda step, steps, values: None
    say: Callable[[str], None] = lambda line: None
    _configs: dict[str, ComponentConfig] = field(default_factory=dict)

    @property
    def options(self) -> StageConfig:
        """The stage's options; components are reached through `component`."""
        return STAGES[self.stage.kind].model_construct(**self.stage.options)

    @property
    def device(self) -> str:
        """Torch device type."""
        return self.plan.device.kind

    def planned(self, slot: str) -> PlannedComponent | None:
        """Return the stage's component of a slot, if the stack named one."""
        path = f"stages[{self.stage.index}].{self.stage.kind}.{slot}"
        return next((part for part in self.stage.components if part.path == path), None)

    def planned_many(self, slot: str) -> dict[str, PlannedComponent]:
        """Return the stage's components of a slot that takes several, by number or pattern; "" for a single one."""
        path = f"stages[{self.stage.index}].{self.stage.kind}.{slot}"
        found = {part.path.removeprefix(path): part for part in self.stage.components if part.path.startswith(path)}
        return {key[1:-1]: part for key, part in found.items() if not key or (key[0] == "[" and key[-1] == "]")}

    def component(self, slot: str, *dependencies: Any) -> Any:
        """Build the stage's component of a slot; None where the stack named none.

        Raises:
            PluginError: its code fails.
        """
        part = self.planned(slot)
        return None if part is None else build(self.catalogue, part, *dependencies)

    @property
    def parent(self) -> str:
        """Digest of the artifact that the stage starts from; empty for the model as its plugin loads it."""
        return self.lineage[-1].digest if self.lineage else ""

    def load_model(self) -> tuple[Any, Any]:
        """Return (model, tokenizer) as the earlier stages left it, adapters merged.

        Raises:
            ArtifactError: an artifact of the lineage is damaged or does not fit the model.
        """
        builder = build(self.catalogue, self.plan.model[0])
        return self._loaded(builder, self.lineage), builder.tokenizer()

    def load_float_model(self) -> Any:
        """Return the model as it would be without the quantize stages.

        Raises:
            FitError: no earlier stage quantizes.
            ArtifactError: as `load_model`.
        """
        kept = [artifact for artifact in self.lineage if artifact.card.kind != "quantized"]
        if len(kept) == len(self.lineage):
            raise FitError(
                "no earlier stage quantizes", where="evaluate.compare_to_float", fix="leave it out, or quantize first"
            )
        return self._loaded(build(self.catalogue, self.plan.model[0]), kept)

    def _loaded(self, builder: Any, lineage: Sequence[Artifact]) -> Any:
        model = builder.load(device=self.device, dtype=self.plan.resources.dtype)
        for artifact in lineage:
            apply(read(artifact.folder), model, self.catalogue)
        return model


def configure(catalogue: Catalogue, plugin: str, options: dict[str, Any]) -> ComponentConfig:
    """Return a plugin's config with nested references resolved, from options that a plan holds."""
    config = load_config(catalogue.get(plugin)).model_validate(options)
    nested = {
        name: configure(catalogue, value.use, value.options)
        for name, _, value in config.nested()
        if not isinstance(value, ComponentConfig)
    }
    return config.model_copy(update=nested)


def build(catalogue: Catalogue, part: PlannedComponent, *dependencies: Any) -> Any:
    """Construct a planned component, on its plugin's account.

    Raises:
        PluginError: its code fails.
    """
    with blamed(catalogue.get(part.plugin), "building it"):
        return configure(catalogue, part.plugin, part.options).build(*dependencies)


def apply(artifact: Artifact, model: Any, catalogue: Catalogue) -> None:
    """Bring a model, in place, to the state that an artifact holds.

    Raises:
        ArtifactError: tensors are missing, unknown or of another shape.
    """
    from safetensors.torch import load_file

    details = artifact.card.details
    if artifact.card.kind == "adapter":
        adapter = configure(catalogue, details["plugin"], details["options"]).build()
        adapter.inject(model, seed=0)
        adapter.load(model, artifact.folder)
        adapter.merge(model)
        return
    if artifact.card.kind == "quantized":
        configure(catalogue, details["plugin"], details["options"]).build().rebuild(model)
    state = {
        name: tensor
        for path in sorted(artifact.folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    with damaged(artifact):
        result = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if wrong := sorted((set(result.missing_keys) - tied) | set(result.unexpected_keys)):
        raise ArtifactError(f"tensor {wrong[0]} is in only one of artifact and model", where=str(artifact.folder))
    model.tie_weights()
    model.eval()


@contextmanager
def damaged(artifact: Artifact) -> Iterator[None]:
    """Turn torch's complaint about a tensor into an ArtifactError."""
    try:
        yield
    except RuntimeError as cause:
        raise ArtifactError(
            f"does not fit the model: {str(cause).splitlines()[-1].strip()}", where=str(artifact.folder)
        ) from cause


def save_state(model: Any, folder: Path, name: str = "model.safetensors") -> None:
    """Write a model's parameters and buffers once each: tied tensors are stored under one name."""
    from safetensors.torch import save_file

    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items() if key not in tied}
    save_file(state, folder / name, metadata={"format": "pt"})


def finite(values: Sequence[float], what: str) -> None:
    """Refuse to go on with figures that are no numbers.

    Raises:
        FitError: names what is not finite.
    """
    import math

    if not all(map(math.isfinite, values)):
        raise FitError(f"{what} is not finite", fix="lower the learning rate, check the data, or use float32")


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error as the fields of a Failure event."""
    acts = error.acts if isinstance(error, StackloomError) else "the stackloom developers"
    return {"error": type(error).__name__, "message": str(error), "acts": acts}


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one go."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
