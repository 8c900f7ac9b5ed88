"""Checkpoints of a train stage: everything that the next step depends on, as safetensors and JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stackloom.artifacts import Artifact, Card, read
from stackloom.core.errors import ArtifactError
from stackloom.run.team import Solo

KEEP = 2


def save(
    folder: Path,
    step: int,
    key: str,
    tensors: dict[str, Tensor],
    optimizer: dict[str, Any],
    progress: dict[str, Any],
    team: Solo,
) -> None:
    """Write the checkpoint after `step` steps, then drop all but the newest two. All workers call it.

    Every worker writes its random state, and every worker that holds parameters of its own writes those.

    Args:
        folder: of the stage's checkpoints, the same for all workers.
        key: of the stage; another stage's checkpoint is never resumed from.
        tensors: the trainable parameters by name.
        optimizer: its state_dict.
        progress: small JSON data (losses so far, seconds).
        team: the workers.
    """
    card = Card(kind="checkpoint", key=key, made_by="train", details={"step": step})
    with team.writing(folder / f"step-{step:08d}", card) as target:
        random = {"torch": torch.get_rng_state().tolist()}
        _write(target / _name("random.json", team.rank), random)
        if team.holder == team.rank:
            parameters = {name: team.local(tensor)[0].detach().contiguous() for name, tensor in tensors.items()}
            save_file(parameters, target / _name("parameters.safetensors", team.rank))
            flat: dict[str, Tensor] = {}
            skeleton = _strip(optimizer, "optimizer", flat, team)
            held = {name: tensor.detach().contiguous() for name, tensor in flat.items()}
            save_file(held, target / _name("optimizer.safetensors", team.rank))
            state = {"step": step, "optimizer": skeleton, "progress": progress}
            _write(target / _name("state.json", team.rank), state)
    if team.rank == 0:
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old)


def _name(file: str, rank: int) -> str:
    """Return a worker's file; worker 0's has the name that a single worker's has."""
    stem, _, kind = file.partition(".")
    return f"{stem}-{rank}.{kind}" if rank else file


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


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


def load(checkpoint: Path, team: Solo) -> tuple[int, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return this worker's (step, pieces of the parameters, optimizer state_dict, progress); restore its random state.

    Args:
        checkpoint: folder of a whole checkpoint, written by as many workers.
        team: the workers.
    """
    holder = team.holder
    state = json.loads((checkpoint / _name("state.json", holder)).read_text(encoding="utf-8"))
    random = json.loads((checkpoint / _name("random.json", team.rank)).read_text(encoding="utf-8"))
    flat = load_file(checkpoint / _name("optimizer.safetensors", holder))
    torch.set_rng_state(torch.tensor(random["torch"], dtype=torch.uint8))
    parameters = load_file(checkpoint / _name("parameters.safetensors", holder))
    return state["step"], parameters, _fill(state["optimizer"], flat, team), state["progress"]


def _strip(value: Any, path: str, tensors: dict[str, Tensor], team: Solo) -> Any:
    """Replace tensors by their path, tuples and integer keys by marked JSON."""
    if isinstance(value, Tensor):
        piece, layout = team.local(value)
        tensors[path] = piece.clone()  # state may share storage, which safetensors refuses
        return {"@tensor": path} | layout
    if isinstance(value, dict):
        return {"@items": [[key, _strip(item, f"{path}.{key}", tensors, team)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_strip(item, f"{path}[{index}]", tensors, team) for index, item in enumerate(value)]
        return {"@tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{path} is a {type(value).__name__}; an optimizer's state holds tensors, numbers, text, lists and dicts"
    )


def _fill(value: Any, tensors: dict[str, Tensor], team: Solo) -> Any:
    if isinstance(value, list):
        return [_fill(item, tensors, team) for item in value]
    if not isinstance(value, dict):
        return value
    if "@tensor" in value:
        layout = {key: item for key, item in value.items() if key != "@tensor"}
        return team.rebuild(tensors[value["@tensor"]], layout)
    if "@tuple" in value:
        return tuple(_fill(item, tensors, team) for item in value["@tuple"])
    return {key: _fill(item, tensors, team) for key, item in value["@items"]}
