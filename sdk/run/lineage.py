"""What a run folder holds, read without running anything: its plan, finished stages, and the model they made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stackloom.artifacts import Artifact, read
from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.plan import Plan
from stackloom.core.statistics import paired_difference
from stackloom.run.runner import MODEL_KINDS, PLAN_FILE


def plan_of(folder: Path) -> Plan:
    """Return the plan of a run folder.

    Raises:
        ConfigError: the folder is no run.
        ArtifactError: its plan is damaged.
    """
    if not (folder / PLAN_FILE).is_file():
        raise ConfigError("is no run folder: it has no plan.json", where=str(folder), fix="name a folder under runs/")
    return Plan.from_file(folder / PLAN_FILE)


def finished(folder: Path) -> Iterator[tuple[int, str, Artifact]]:
    """Yield (index, kind, artifact) of each finished stage, after checking it."""
    for stage in plan_of(folder).stages:
        target = folder / f"{stage.index}-{stage.kind}"
        if target.exists():
            yield stage.index, stage.kind, read(target)


def model_lineage(folder: Path) -> list[Artifact]:
    """Return the artifacts that make the run's model, oldest first.

    Raises:
        ArtifactError: one is damaged, or a stage before the last is unfinished.
    """
    found = [
        artifact for _, kind, artifact in finished(folder) if artifact.card.kind in MODEL_KINDS and kind != "export"
    ]
    parent = ""
    for artifact in found:
        if artifact.card.parent != parent:
            raise ArtifactError(
                "does not follow from the stage before it", where=str(artifact.folder), fix="resume the run"
            )
        parent = artifact.digest
    return found


def differences(one: Path, two: Path) -> dict[str, Any]:
    """Compare two run folders or saved plans: what was asked for, and where both were evaluated, what came out.

    Returns:
        "plan": dotted path to [first, second] where they differ; "metrics": per evaluate stage that both finished, both
        values and the paired difference (second minus first) with its 95 per cent interval.
    """
    plans = [Plan.from_file(path) if path.is_file() else plan_of(path) for path in (one, two)]
    flat = [
        dict(flatten(plan.model_dump(mode="json", include={"name", "seed", "stack", "device", "model", "stages"})))
        for plan in plans
    ]
    changed = {
        key: [flat[0].get(key), flat[1].get(key)]
        for key in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(key) != flat[1].get(key)
    }
    metrics = {}
    if one.is_dir() and two.is_dir():
        measured = [
            {index: _metrics(artifact) for index, kind, artifact in finished(path) if kind == "evaluate"}
            for path in (one, two)
        ]
        for index in sorted(measured[0].keys() & measured[1].keys()):
            metrics[str(index)] = _compare(measured[0][index], measured[1][index])
    return {"plan": changed, "metrics": metrics}


def _metrics(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.folder / "metrics.json").read_text(encoding="utf-8"))
    return found


def _compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: [first[name]["value"], second[name]["value"]]
        for name in ("perplexity", "pass_rate")
        if name in first and name in second
    }
    if "tasks" in first and "tasks" in second:
        found["pass_rate_difference"] = paired_difference(first["tasks"], second["tasks"])
    return found


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for every leaf of plain data."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}[{index}]")
    else:
        yield path, value
