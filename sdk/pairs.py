"""Were these two ever run together? Tiny stacks on this CPU until every two plugins of different slots have met.

Each stack holds one plugin for every slot that a stage or the model takes, chosen so that it makes as many new pairs
as it can (a pairwise covering array, built greedily). Where a stack fails, its new pairs run again alone, so that a
reason belongs to two plugins. A pair that ran has only shown that it runs: the models are random and two layers deep.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from stackloom.core.catalogue import PluginRecord
from stackloom.core.config import ComponentConfig
from stackloom.core.devices import find_device
from stackloom.core.errors import ArtifactError, StackloomError
from stackloom.core.loading import load_config
from stackloom.core.stages import STAGES
from stackloom.registry import Registry
from stackloom.registry.discovery import unmet
from stackloom.stack import Stack

Outcome: TypeAlias = Literal["ran", "refused", "failed"]
Picks: TypeAlias = dict[str, str]  # slot to plugin
BASELINE = {  # fills the places that a stack needs and no pick takes
    "model": "model.hf",
    "data": "data.pydoc",
    "optimizer": "optimizer.adamw",
    "quantizer": "quantizer.rtn",
    "environment": "environment.arithmetic",
}
POSITIONS = 4096  # of the tiny models
TINY = {  # options of stages, where a stage has them
    "steps": 2,
    "batch_size": 2,
    "micro_batch_size": 1,
    "sequence_length": 1024,
    "checkpoint_every": 2,
    "calibration_sequences": 4,
    "sequences": 2,
    "tasks": 1,
    "turns": 2,
    "max_tokens": 8,
}


class PairRow(BaseModel):
    """One tiny stack.

    Attributes:
        plugins: whose pairs this row speaks for, sorted.
        outcome: "ran" to the end; "refused" by a plan or a plugin that says why; "failed" with any other error.
        reason: what was said; empty when it ran.
        stack: as plain data, checkpoint and paths left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plugins: tuple[str, ...]
    outcome: Outcome
    reason: str = ""
    stack: dict[str, Any]
    seconds: float
    device: str
    versions: dict[str, str] = Field(description="plugin id to the digest of its files")
    date: str
    command: str = "stackloom pairs"


@dataclass
class Places:
    """Which slots a stack of the installed plugins has, and what each can hold.

    Attributes:
        plugins: ids by slot, those that can be built here.
        left_out: why a plugin cannot be, by id.
        options: what a plugin needs besides its defaults, by id.
    """

    plugins: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


def stage_slots(kind: str) -> dict[str, tuple[str, bool]]:
    """Slots that a stage takes, by option: (slot, whether it takes a list)."""
    return {name: (mark.slot, mark.many == "list") for name, mark in STAGES[kind].slotted().items()}


def required(config: type[ComponentConfig]) -> list[str]:
    """Names of the options that have no default."""
    return [name for name, field in config.model_fields.items() if field.is_required()]


def from_baseline(config: type[ComponentConfig]) -> tuple[dict[str, Any], list[str]]:
    """Required options that a baseline plugin fills, and the names of those that only a user can."""
    slots = {name: mark.slot for name, mark in config.slotted().items()}
    given = {name: {"use": BASELINE[slots[name]]} for name in required(config) if slots.get(name) in BASELINE}
    return given, [name for name in required(config) if name not in given]


def find_places(registry: Registry, checkpoint: Path, scratch: Path) -> Places:
    """Ask every installed plugin what it needs; a config is imported, a component is not."""
    places = Places()
    for plugin in registry.ids():
        record = registry.get(plugin)
        if missing := unmet(record.manifest):
            places.left_out[plugin] = f"needs {', '.join(missing)}"
            continue
        try:
            places.options[plugin] = _options(record, checkpoint, scratch / plugin)
        except (StackloomError, LookupError) as cause:
            places.left_out[plugin] = str(cause).strip("'")
            continue
        places.plugins.setdefault(record.manifest.slot, []).append(plugin)
    return places


def _options(record: PluginRecord, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """What the plugin's required options get: the tiny checkpoint, its own sample, or a baseline of the slot."""
    given, needs = from_baseline(load_config(record))
    if "checkpoint" in needs:
        return {"checkpoint": str(checkpoint)}
    if (given or needs) and (record.folder / "sample.py").is_file():
        folder.mkdir(parents=True)
        sample = importlib.import_module(f"{record.package}.sample").sample(folder)
        if _is_plain(sample):
            given |= sample
    if "max_positions" in given:
        given["max_positions"] = POSITIONS
    if lost := [name for name in needs if name not in given]:
        raise LookupError(f"its option {lost[0]!r} has no default, and it brings no sample")
    return given


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def compose(
    picks: Mapping[str, str],
    options: Mapping[str, Mapping[str, Any]],
    model_slots: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int] = TINY,
) -> dict[str, Any]:
    """A stack of `picks` as plain data: the fewest stages that hold them, what they need besides from the baseline.

    Args:
        picks: plugin by slot.
        options: what plugins need besides their defaults, by id.
        model_slots: options of each model plugin that take a plugin, by the model's id: the slots' names.
        sizes: options of stages, where a stage has them.
    """

    def ref(slot: str) -> dict[str, Any]:
        plugin = picks.get(slot, BASELINE.get(slot, ""))
        return {"use": plugin, **options.get(plugin, {})}

    model = ref("model")
    model |= {slot: ref(slot) for slot in model_slots.get(model["use"], ()) if slot in picks}
    taken = {"model", *model_slots.get(model["use"], ())}
    stages = []
    home = {slot for kind in STAGES for slot, _ in stage_slots(kind).values()} - taken - {"data"}
    fallback = "" if home & picks.keys() else "train" if picks.keys() <= {"data", "tracker"} else "evaluate"
    for kind, stage in STAGES.items():
        slots = stage_slots(kind)
        held = {slot for slot, _ in slots.values()} & picks.keys()
        if not held - taken - {"data"} and kind != fallback:
            continue
        needed = required(stage)
        given: dict[str, Any] = {
            name: [ref(slot)] if many else ref(slot)
            for name, (slot, many) in slots.items()
            if slot in held
            or name in needed
            or (kind == "quantize" and slot == "data")  # to calibrate on
            or (kind == "evaluate" and slot == "environment" and (held != {"data"}))  # what a reasoner attempts
        }
        owners: dict[str, set[str]] = {}
        for owner, names in stage.read_with.items():
            for name in names:
                owners.setdefault(name, set()).add(owner)
        given |= {
            name: size
            for name, size in sizes.items()
            if name in stage.model_fields and (name not in owners or owners[name] & given.keys())
        }
        stages.append({kind: given})
        taken |= held
    trackers = [ref("tracker")] if "tracker" in picks else []
    frame = {"name": "pair", "resources": {"device": "cpu", "dtype": "float32"}, "model": model, "stages": stages}
    return frame | ({"trackers": trackers} if trackers else {})


def combinations(
    plugins: Mapping[str, Sequence[str]], apart: set[frozenset[str]]
) -> Iterator[tuple[Picks, set[frozenset[str]]]]:
    """Yield picks until every two plugins of different slots were in one; with the pairs that are new in each.

    Args:
        plugins: ids by slot.
        apart: pairs that are known not to go together; the caller adds to it, and no later picks hold one.

    Example:
        >>> [picks for picks, _ in combinations({"a": ["a.x"], "b": ["b.x", "b.y"]}, set())]
        [{'a': 'a.x', 'b': 'b.x'}, {'a': 'a.x', 'b': 'b.y'}]
    """
    left = {
        frozenset(pair)
        for one, two in itertools.combinations(sorted(plugins), 2)
        for pair in itertools.product(plugins[one], plugins[two])
    }
    while left:
        first = min(left, key=sorted)
        picks = {plugin.partition(".")[0]: plugin for plugin in sorted(first)}
        for slot in sorted(set(plugins) - set(picks)):
            gains = {
                plugin: sum(frozenset({plugin, other}) in left for other in picks.values())
                for plugin in plugins[slot]
                if not any(frozenset({plugin, other}) in apart for other in picks.values())
            }
            if gains:
                picks[slot] = max(gains, key=lambda plugin: gains[plugin])
        new = {frozenset(pair) for pair in itertools.combinations(picks.values(), 2)} & left
        left -= new
        yield dict(sorted(picks.items())), new


def run_pairs(registry: Registry, *, say: Callable[[str], None] = lambda _: None) -> list[PairRow]:
    """Run tiny stacks until every two plugins have met, and return a row for each stack.

    Raises:
        ConfigError: the baseline's plugins are not installed.
    """
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="stackloom-pairs-") as folder:
        scratch = Path(folder)
        checkpoint = _checkpoint(scratch / "checkpoint")
        places = find_places(registry, checkpoint, scratch / "samples")
        runner = _Runner(registry, places, scratch / "runs")
        for slot in sorted(places.plugins):
            for plugin in list(places.plugins[slot]):
                row = runner.run({slot: plugin})
                say(f"{plugin} alone: {row.outcome} {row.reason}".strip())
                if row.outcome != "ran":
                    places.plugins[slot].remove(plugin)
                    places.left_out[plugin] = f"alone: {row.reason}"
        for plugin, reason in sorted(places.left_out.items()):
            say(f"{plugin} is left out: {reason}")
        rows = [
            PairRow(
                plugins=(plugin,),
                outcome="refused",
                reason=reason,
                stack={},
                seconds=0.0,
                device=_device(),
                versions={plugin: registry.get(plugin).digest},
                date=_now(),
            )
            for plugin, reason in sorted(places.left_out.items())
        ]
        open_slots = {slot: plugins for slot, plugins in places.plugins.items() if plugins}
        apart: set[frozenset[str]] = set()
        for picks, new in combinations(open_slots, apart):
            row = runner.run(picks)
            say(f"{' '.join(picks.values())}: {row.outcome} {row.reason}".strip())
            if row.outcome == "ran":
                rows.append(row)
                continue
            for pair in sorted(map(sorted, new)):
                alone = runner.run({plugin.partition(".")[0]: plugin for plugin in pair})
                say(f"  {' '.join(pair)}: {alone.outcome} {alone.reason}".strip())
                rows.append(alone)
                if alone.outcome != "ran":
                    apart.add(frozenset(pair))
    return rows


@dataclass
class _Runner:
    registry: Registry
    places: Places
    folder: Path
    count: int = 0

    def run(self, picks: Picks) -> PairRow:
        from stackloom.run import runner

        began = time.perf_counter()
        self.count += 1
        data = compose(picks, self.places.options, model_slots(self.registry, self.places.plugins.get("model", ())))
        outcome: Outcome = "ran"
        reason = ""
        try:
            plan = Stack.from_yaml(json.dumps(data)).plan(catalogue=self.registry)
            if problems := plan.problems():
                outcome, reason = "refused", str(problems[0])
            elif left := sorted(set(picks.values()) - {part.plugin for part in plan.components()}):
                outcome, reason = "refused", f"no place in a stack of these for {', '.join(left)}"
            else:
                runner.run(plan, self.registry, folder=self.folder / str(self.count))
        except StackloomError as error:
            outcome, reason = "refused", str(error)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is this pair's result
            outcome, reason = "failed", f"{type(error).__name__}: {error}"
        return PairRow(
            plugins=tuple(sorted(picks.values())),
            outcome=outcome,
            reason=_line(reason, self.folder.parent),
            stack=json.loads(json.dumps(data).replace(str(self.folder.parent), "").replace(sys.executable, "python")),
            seconds=round(time.perf_counter() - began, 2),
            device=_device(),
            versions={plugin: self.registry.get(plugin).digest for plugin in sorted(picks.values())},
            date=_now(),
        )


def write(path: Path, rows: Sequence[PairRow]) -> None:
    """Write rows to a file that `read` takes."""
    text = json.dumps([row.model_dump(mode="json") for row in rows], indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> list[PairRow]:
    """Read rows that `write` wrote.

    Raises:
        ArtifactError: the file holds something else.
    """
    try:
        return [PairRow.model_validate(row) for row in json.loads(path.read_bytes())]
    except (OSError, ValueError) as cause:
        raise ArtifactError(f"holds no pairs: {str(cause).splitlines()[0]}", where=str(path)) from cause


def by_pair(rows: Sequence[PairRow]) -> dict[frozenset[str], PairRow]:
    """The row that speaks for each pair: one that ran before one that did not, then the newest."""
    found: dict[frozenset[str], PairRow] = {}
    for row in sorted(rows, key=lambda row: (row.outcome == "ran", row.date)):
        for pair in itertools.combinations(row.plugins, 2):
            found[frozenset(pair)] = row
    return found


def summary(rows: Sequence[PairRow]) -> str:
    """Counts of pairs, and each failure with its reason."""
    pairs = by_pair(rows)
    ran = sum(row.outcome == "ran" for row in pairs.values())
    lines = [f"{ran} of {len(pairs)} pairs ran"]
    lines += [
        f"{' with '.join(sorted(pair))}: {row.outcome}: {row.reason}"
        for pair, row in sorted(pairs.items(), key=lambda item: sorted(item[0]))
        if row.outcome != "ran"
    ]
    lines += [f"{row.plugins[0]}: left out: {row.reason}" for row in rows if len(row.plugins) == 1]
    return "\n".join(lines)


def model_slots(registry: Registry, models: Sequence[str]) -> dict[str, list[str]]:
    """Slots that each model plugin takes, by its id."""
    return {model: [mark.slot for mark in load_config(registry.get(model)).slotted().values()] for model in models}


def _checkpoint(folder: Path) -> Path:
    """A random Llama of two layers over single bytes."""
    from stackloom.testing import tiny_tokenizer
    from stackloom.testing.llama import llama_shape, tiny_llama

    tokenizer = tiny_tokenizer()
    model = tiny_llama(llama_shape(vocab=len(tokenizer), max_positions=POSITIONS, intermediate=64))
    model.config.eos_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _line(text: str, folder: Path) -> str:
    return " ".join(text.replace(str(folder), "").split())[:400]


def _device() -> str:
    return find_device("cpu").title


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
