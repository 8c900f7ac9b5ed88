"""What the composer knows without a server: fits, conflicts and memory of picks, computed with the planner.

For each model shape and kind of device the planner is asked about every plugin alone and every two together, each with
the fewest other plugins that make a stack. What two plugins refuse, no stack of them and others can do; memory beyond
two picks is a lower bound, and the composer says so and prints the command that plans it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stackloom.core.devices import device_table
from stackloom.core.errors import StackloomError
from stackloom.core.loading import load_config
from stackloom.core.stages import STAGES
from stackloom.pairs import BASELINE, compose, from_baseline, model_slots, required, stage_slots
from stackloom.registry import Registry
from stackloom.stack import Stack

SIZES = {"steps": 100}  # what stages require and have no default for
KINDS = {"cpu": "cpu", "cuda": "h100"}  # the device that speaks for the fits of its kind


def make_grid(registry: Registry, plugins: Sequence[str], checkpoints: Sequence[str]) -> dict[str, Any]:
    """Ask the planner about every pick and every two; a few milliseconds each.

    Args:
        registry: of the plugins.
        plugins: ids to offer.
        checkpoints: names that `model.hf` knows.

    Returns:
        JSON data that the composer's script reads: `fits[shape][kind]["a b"]` is [index of the reason or -1, bytes].
    """
    slots: dict[str, list[str]] = {}
    blocked: dict[str, str] = {}
    options: dict[str, dict[str, Any]] = {}
    homes = model_slots(registry, [BASELINE["model"]])
    places = {slot for kind in STAGES for slot, _ in stage_slots(kind).values()} | set(homes[BASELINE["model"]])
    for plugin in plugins:
        record = registry.get(plugin)
        if record.manifest.slot not in places:
            continue
        slots.setdefault(record.manifest.slot, []).append(plugin)
        options[plugin], needs = from_baseline(load_config(record))
        if needs:
            shown = ", ".join(needs)
            blocked[plugin] = f"needs {shown}, which only you know: see stackloom show {plugin} --schema"
    reasons: list[str] = []
    fits: dict[str, dict[str, dict[str, list[int]]]] = {}
    for shape, (kind, device) in itertools.product(checkpoints, KINDS.items()):
        found = fits.setdefault(shape, {}).setdefault(kind, {})
        mine = options | {BASELINE["model"]: {"checkpoint": shape}}
        for picks in _picks(slots, blocked):
            reason, size = ask(registry, compose(picks, mine, homes, SIZES), device)
            if reason and reason not in reasons:
                reasons.append(reason)
            found[" ".join(sorted(picks.values()))] = [reasons.index(reason) if reason else -1, size]
    return {
        "plugins": {plugin: registry.get(plugin).digest for plugin in plugins},
        "shapes": list(checkpoints),
        "devices": {"cpu": {"title": "your own CPU", "bytes": 0, "kind": "cpu"}}
        | {
            name: {"title": device.title, "bytes": int(device.memory_bytes), "kind": device.kind}
            for name, device in device_table().items()
            if name != "cpu"  # this machine's is nobody else's
        },
        "slots": slots,
        "blocked": blocked,
        "options": options,
        "baseline": BASELINE,
        "sizes": SIZES,
        "model_slots": homes[BASELINE["model"]],
        "stages": [
            {
                "kind": kind,
                "slots": [[name, slot, many] for name, (slot, many) in stage_slots(kind).items()],
                "required": required(stage),
            }
            for kind, stage in STAGES.items()
        ],
        "reasons": reasons,
        "fits": fits,
    }


def ask(registry: Registry, data: Mapping[str, Any], device: str) -> tuple[str, int]:
    """Plan a stack: why it cannot work, memory aside, empty when it can; and the bytes of its worst stage."""
    data = {**data, "resources": {"device": device, "dtype": "bfloat16"}}
    try:
        plan = Stack.from_yaml(json.dumps(data)).plan(catalogue=registry)
    except StackloomError as error:
        return " ".join(str(error).split())[:400], 0
    memory = sum(stage.cost.memory_bytes > plan.device.memory_bytes for stage in plan.stages)  # the last problems
    problems = plan.problems()[: len(plan.problems()) - memory]
    return (" ".join(str(problems[0]).split())[:400] if problems else ""), int(plan.peak_bytes)


def _picks(slots: Mapping[str, Sequence[str]], blocked: Mapping[str, str]) -> list[dict[str, str]]:
    alone = [{slot: plugin} for slot, plugins in slots.items() for plugin in plugins if plugin not in blocked]
    return [*alone, *(one | two for one, two in itertools.combinations(alone, 2) if one.keys() != two.keys())]


def write_grid(path: Path, grid: Mapping[str, Any]) -> None:
    """Write the grid without spaces: a browser loads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(grid, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
