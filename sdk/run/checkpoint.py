"""Checkpoints of a train stage: everything that the next step depends on, as safetensors and JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core.errors import ArtifactError

KEEP = 2


def save(
    folder: Path, step: int, key: str, tensors: dict[str, Tensor], optimizer: dict[str, Any], progress: dict[str, Any]
) -> None:
    """Write the checkpoint after `step` steps, then drop all but the newest two.

    Args:
        folder: of the stage's checkpoints.
        key: of the stage; another stage's checkpoint is never resumed from.
        tensors: the trainable parameters by name.
        optimizer: its state_dict.
        progress: small JSON data (losses so far, seconds).
    """
    flat: dict[str, Tensor] = {}
    skeleton = _strip(optimizer, "optimizer", flat)
    with writing(
        folder / f"step-{step:08d}", Card(kind="checkpoint", key=key, made_by="train", details={"step": step})
    ) as target:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, target / "parameters.safetensors"
        )
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in flat.items()}, target / "optimizer.safetensors"
        )
        state = {"step": step, "optimizer": skeleton, "torch_rng": torch.get_rng_state().tolist(), "progress": progress}
        (target / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def newest(folder: Path, key: str) -> tuple[Artifact | None, list[str]]:
    """Return the newest whole checkpoint of this stage, and why newer ones were passed over (an older one will do)."""
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            found = read(path, "checkpoint")
        except ArtifactError as error:
            passed_over.append(str(error))
            continue
        if found.card.key == key:
            return found, passed_over
        passed_over.append(f"{path.name} belongs to another plan")
    return None, passed_over


def load(checkpoint: Artifact) -> tuple[int, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return (step, parameters, optimizer state_dict, progress) and restore torch's random state."""
    state = json.loads((checkpoint.folder / "state.json").read_text(encoding="utf-8"))
    flat = load_file(checkpoint.folder / "optimizer.safetensors")
    torch.set_rng_state(torch.tensor(state["torch_rng"], dtype=torch.uint8))
    parameters = load_file(checkpoint.folder / "parameters.safetensors")
    return state["step"], parameters, _fill(state["optimizer"], flat), state["progress"]


def _strip(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their path, tuples and integer keys by marked JSON."""
    if isinstance(value, Tensor):
        tensors[path] = value.clone()  # state may share storage, which safetensors refuses
        return {"@tensor": path}
    if isinstance(value, dict):
        return {"@items": [[key, _strip(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_strip(item, f"{path}[{index}]", tensors) for index, item in enumerate(value)]
        return {"@tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{path} is a {type(value).__name__}; an optimizer's state holds tensors, numbers, text, lists and dicts"
    )


def _fill(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_fill(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "@tensor" in value:
        return tensors[value["@tensor"]]
    if "@tuple" in value:
        return tuple(_fill(item, tensors) for item in value["@tuple"])
    return {key: _fill(item, tensors) for key, item in value["@items"]}
