"""Sweeps: one stack with several values of an option, each run in its folder, compared and the best one picked."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackloom.core.errors import ConfigError, FitError, StackloomError
from stackloom.core.stack import StackSpec, load_yaml

if TYPE_CHECKING:
    from stackloom.registry import Registry
    from stackloom.report.endings import Ending
    from stackloom.run.runner import Display
    from stackloom.stack import Plan

PAGE, DATA = "sweep.html", "sweep.json"
_PART = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")


@dataclass(frozen=True)
class Axis:
    """An option and the values that it takes.

    Attributes:
        path: "train.optimizer.lr", where one stage is of that kind; else "stages[1].train.optimizer.lr".
        values: at least one, as YAML reads them.
    """

    path: str
    values: tuple[Any, ...]

    @classmethod
    def read(cls, text: str) -> Axis:
        """Read "PATH=VALUE,VALUE,...".

        Raises:
            ConfigError: it is not of that form, a value is there twice, or values are not YAML.

        Example:
            >>> Axis.read("train.optimizer.lr=1e-3,2e-3").values
            (0.001, 0.002)
        """
        path, equals, values = text.partition("=")
        fix = "write --sweep train.optimizer.lr=1e-3,2e-3"
        if not equals or not path.strip() or not values.strip():
            raise ConfigError(f"{text!r} names no option with values", where="--sweep", fix=fix)
        found = load_yaml(f"[{values}]", "--sweep")
        texts = [json.dumps(value, sort_keys=True) for value in found]
        if twice := [each for each in texts if texts.count(each) > 1]:
            raise ConfigError(f"{path} has the value {twice[0]} twice", where="--sweep")
        return cls(path.strip(), tuple(found))

    @classmethod
    def of(cls, spec: StackSpec) -> tuple[Axis, ...]:
        """Return the axes that a stack states itself, under `sweep`.

        Raises:
            ConfigError: an option has no value, or one twice.
        """
        axes = [cls(path, tuple(values)) for path, values in spec.to_data().get("sweep", {}).items()]
        for axis in axes:
            texts = [json.dumps(value, sort_keys=True) for value in axis.values]
            if len(set(texts)) < max(1, len(texts)):
                raise ConfigError("needs at least one value, none of them twice", where=f"sweep.{axis.path}")
        return tuple(axes)


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        label: "lr=0.001", the name of its folder.
        values: by the axes' paths.
        ending: what it is compared by; None where it did not finish.
        failure: why not.
        measured: what its last evaluation and quantization measured, as text by name.
    """

    label: str
    values: dict[str, Any]
    folder: Path
    ending: Ending | None = None
    failure: str = ""
    measured: Mapping[str, str] = field(default_factory=dict)


def points(spec: StackSpec, axes: Sequence[Axis]) -> Iterator[tuple[str, dict[str, Any], StackSpec]]:
    """Yield (label, values by path, stack) for every combination of the axes' values.

    Raises:
        ConfigError: a path leads nowhere in the stack.
    """
    if len({axis.path for axis in axes}) < len(axes):
        raise ConfigError("an option is swept twice", where="--sweep")
    for chosen in itertools.product(*(axis.values for axis in axes)):
        values = {axis.path: value for axis, value in zip(axes, chosen, strict=True)}
        data = json.loads(json.dumps(spec.model_copy(update={"sweep": {}}).to_data()))
        for path, value in values.items():
            _put(data, path, value)
        parts = (f"{path.rpartition('.')[2]}={_word(value)}" for path, value in values.items())
        yield ",".join(parts), values, StackSpec.from_data(data, spec.name)


def _word(value: Any) -> str:
    """Write a value as a part of a folder's name: a number shortly, a plugin by its id."""
    named = value.get("use", "") if isinstance(value, dict) else value
    text = f"{named:g}" if isinstance(named, float) else str(named)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text) or "value"


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    """Set an option in a stack's plain data."""
    keys: list[str] = [name or index for name, index in _PART.findall(path)]
    place: Any = data
    kinds = [next(iter(stage)) for stage in data["stages"]]
    if keys[0] in kinds:
        if kinds.count(keys[0]) > 1:
            raise ConfigError(
                f"the stack has {kinds.count(keys[0])} {keys[0]} stages",
                where=path,
                fix=f"write stages[{kinds.index(keys[0])}].{path}",
            )
        place = data["stages"][kinds.index(keys[0])]
    for key, following in itertools.pairwise(keys):
        inner = _inside(place, key, path)
        if isinstance(inner, str) and "." in inner:  # a plugin without options is written as its id
            inner = {"use": inner}
            place[int(key) if isinstance(place, list) else key] = inner
        if not isinstance(inner, dict | list):
            raise ConfigError(f"{key} is {inner!r} and has no {following}", where=path)
        place = inner
    if isinstance(place, list):
        _inside(place, keys[-1], path)
        place[int(keys[-1])] = value
    else:
        place[keys[-1]] = value


def _inside(place: Any, key: str, path: str) -> Any:
    if isinstance(place, list):
        if key.isdecimal() and int(key) < len(place):
            return place[int(key)]
        raise ConfigError(f"there is no number {key} among {len(place)}", where=path)
    if key not in place:
        raise ConfigError(
            f"the stack has no {key!r} here",
            where=path,
            fix=f"it has {', '.join(map(str, place))}; write what is there",
        )
    return place[key]


def sweep(
    spec: StackSpec,
    axes: Sequence[Axis],
    registry: Registry,
    *,
    folder: Path | None = None,
    device: str | None = None,
    display: Display | None = None,
    before: Callable[[int, int, str], None] = lambda number, count, label: None,
    executor: str = "local",
    address: str | None = None,
) -> tuple[Path, list[Point]]:
    """Run every combination, one after the other; the same call goes on with a sweep that was stopped.

    All are planned before the first runs. One that fails while running (a loss that is no number) is noted, and the
    others go on. Writes sweep.html and sweep.json.

    Args:
        spec: the stack.
        axes: at least one.
        registry: where plugins are found and runs are recorded.
        folder: for all runs; runs/<name>-sweep-<digest> if absent.
        device: plan for this one instead of the stack's.
        display: what the user watches of each run.
        before: told before each run which one of how many it is.
        executor, address: as in `runner.run`.

    Returns:
        The folder and the points, in the order of the values; see `best`.

    Raises:
        StackloomError: what planning raises; or the first failure where no run finished.
    """
    from stackloom.core import planning
    from stackloom.registry.discovery import unmet
    from stackloom.report import write_report
    from stackloom.report.comparison import Sweep, write_comparison
    from stackloom.report.endings import columns, ending
    from stackloom.report.record import read_run
    from stackloom.run import runner

    plans: dict[str, tuple[dict[str, Any], Plan | Any]] = {}
    for label, values, each in points(spec, axes):
        plan = planning.plan(each, registry, device=device, unmet=unmet)
        if not any(stage.kind in ("train", "evaluate") for stage in plan.stages):
            raise ConfigError("has neither a train nor an evaluate stage, by which a sweep compares", where=spec.name)
        runner.check(plan, registry, executor, address)
        plans[label if label not in plans else f"{label}-{len(plans)}"] = (values, plan)
    digest = hashlib.sha256("".join(plan.digest for _, plan in plans.values()).encode()).hexdigest()
    folder = folder or Path("runs") / f"{spec.name}-sweep-{digest[:8]}"
    found: list[Point] = []
    first: StackloomError | None = None
    for number, (label, (values, plan)) in enumerate(plans.items()):
        before(number + 1, len(plans), label)
        place, failure = folder / label, ""
        try:
            runner.run(plan, registry, folder=place, display=display, executor=executor, address=address)
        except FitError as error:
            first, failure = first or error, error.reason
        write_report(place, registry)
        made = read_run(place, registry)
        found.append(Point(label, values, place, None if failure else ending(made), failure, columns(made)))
    numbers = {point.label: point.values[axes[0].path] for point in found}
    numeric = len(axes) == 1 and all(isinstance(value, int | float) for value in numbers.values())
    write_comparison(
        {point.label: point.folder for point in found},
        registry,
        folder / PAGE,
        title=f"{spec.name}: sweep of {', '.join(axis.path for axis in axes)}",
        sweep=Sweep(axes[0].path, numbers) if numeric else None,
    )
    (folder / DATA).write_text(json.dumps(as_data(found), indent=1) + "\n", encoding="utf-8")
    if first is not None and best(found) is None:
        raise first
    return folder, found


def best(found: Sequence[Point]) -> Point | None:
    """Return the point with the best ending; None where none finished."""
    done = [(point.ending.rank, number) for number, point in enumerate(found) if point.ending is not None]
    return found[min(done)[1]] if done else None


def as_data(found: Sequence[Point]) -> Mapping[str, Any]:
    """Return a sweep's outcome as JSON data."""
    winner = best(found)
    rows = [
        {
            "label": point.label,
            "values": point.values,
            "folder": point.folder.name,
            "value": point.ending.value if point.ending else None,
            "interval": point.ending.interval if point.ending else None,
            "failure": point.failure,
        }
        for point in found
    ]
    named = {"best": winner.label, "measure": winner.ending.measure} if winner and winner.ending else {"best": None}
    return {**named, "points": rows}
