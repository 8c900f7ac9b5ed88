"""Several runs on one page: where their stacks differ, what each ended with, and their curves over one another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackloom.core.errors import ArtifactError
from stackloom.report.endings import ABOVE, NOTES, Ending, columns, ending, titles
from stackloom.report.record import RunRecord, Series, StageRecord, read_run

if TYPE_CHECKING:
    from stackloom.registry import Registry

COMPARED = ("loss", "grad_norm", "lr", "reward", "tokens_per_second")


@dataclass(frozen=True)
class Sweep:
    """One swept option whose values are numbers, for a plot of the runs' endings over them.

    Attributes:
        option: its path in the stack.
        values: by run label.
    """

    option: str
    values: Mapping[str, float]


def write_comparison(
    folders: Mapping[str, Path], registry: Registry, path: Path, *, title: str, sweep: Sweep | None = None
) -> Path:
    """Write the page and return its path.

    Args:
        folders: run folders by the label to show; at least one, finished or not.
        registry: whose ledger is read.
        path: of the page.
        title: its heading.
        sweep: what the runs differ in, if it is one number.

    Raises:
        ConfigError: a folder holds no run.
        ArtifactError: a plan is damaged, or the page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from stackloom.registry import StorageError
    from stackloom.registry.atomic import write_atomic
    from stackloom.report import page

    runs = {label: read_run(folder, registry) for label, folder in folders.items()}
    endings = {label: ending(run) for label, run in runs.items()}
    done = {label: found for label, found in endings.items() if found is not None}
    measures = {found.measure for found in done.values()}
    measured = {label: columns(run) for label, run in runs.items()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": page.number, "gib": page.size, "spent": page.spent}
    text = environment.get_template("comparison.html.tmpl").render(
        title=title,
        runs=runs,
        endings=endings,
        measures={measure: NOTES[measure] for measure in NOTES if measure in measures},
        measured=measured,
        columns=titles(measured.values(), measures),
        best=min(done, key=lambda label: done[label].rank) if len(measures) == 1 else None,
        times={label: _seconds(run) for label, run in runs.items()},
        peaks={
            label: max((s.peak_bytes for s in run.stages if s.peak_bytes), default=None) for label, run in runs.items()
        },
        differing=differing(runs),
        figures=[*_sweep_figure(sweep, done), *_interval_figure(done), *_figures(runs)],
    )
    try:
        write_atomic(path, text.encode())
    except StorageError as cause:
        raise ArtifactError("the page cannot be written", where=str(path), fix="free some space") from cause
    return path


def _seconds(run: RunRecord) -> float | None:
    found = [stage.spent.seconds for stage in run.stages if stage.spent.seconds is not None]
    return math.fsum(found) if found else None


def differing(runs: Mapping[str, RunRecord]) -> dict[str, list[str]]:
    """Return each option in which the stacks differ, with its value per run as JSON; "-" where it is not there."""
    from stackloom.run.lineage import flatten

    flat = [dict(flatten(run.plan.stack)) for run in runs.values()]
    keys = dict.fromkeys(key for each in flat for key in each)
    found = {key: [json.dumps(each[key]) if key in each else "-" for each in flat] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _sweep_figure(sweep: Sweep | None, endings: Mapping[str, Ending]) -> Iterator[Any]:
    from stackloom.report import plots
    from stackloom.report.page import Plot, number

    points = sorted((sweep.values[label], found.value) for label, found in endings.items()) if sweep else []
    if sweep is None or len(points) < 2:
        return
    measure = next(iter(endings.values())).measure
    said = ", ".join(f"{number(value)} at {at:g}" for at, value in points)
    x, y = zip(*points, strict=True)
    svg = plots.lines(
        "sweep", x, {measure: y}, across=sweep.option, up=measure, scale="log" if min(x) > 0 else "linear"
    )
    yield Plot("sweep", f"{_title(measure)} by value", NOTES[measure], f"{_title(measure)}: {said}.", svg)


def _interval_figure(endings: Mapping[str, Ending]) -> Iterator[Any]:
    """Draw endings that have intervals, where all runs are compared by the same measure."""
    from stackloom.report import plots
    from stackloom.report.page import Plot

    rows = [(label, found.value, found.interval) for label, found in endings.items() if found.interval]
    measures = {found.measure for found in endings.values()}
    if len(rows) < 2 or len(measures) > 1:
        return
    (measure,) = measures
    svg = plots.intervals("endings", rows, across=measure, zero=measure == ABOVE)
    said = "; ".join(f"{label}: {found}" for label, found in endings.items())
    yield Plot("endings", _title(measure), NOTES[measure], f"{said}.", svg)


def _title(measure: str) -> str:
    return measure[0].upper() + measure[1:]


def _figures(runs: Mapping[str, RunRecord]) -> Iterator[Any]:
    """Draw each metric that two runs or more have in the same stage."""
    from stackloom.report import plots
    from stackloom.report.page import SMOOTHED, TITLES, Plot, number

    count = max(len(run.stages) for run in runs.values())
    for index in range(count):
        stages = {label: run.stages[index] for label, run in runs.items() if index < len(run.stages)}
        for name in COMPARED:
            series = {label: shown for label, stage in stages.items() if (shown := _shown(stage, name)) is not None}
            if len(series) < 2:
                continue
            steps = sorted({step for each in series.values() for step in each.steps})
            drawn: dict[str, list[float | None]] = {}
            for label, each in series.items():
                values = each.values
                if name in SMOOTHED:
                    values = tuple(plots.running_mean(values, min(50, max(1, len(values) // 20))))
                known = dict(zip(each.steps, values, strict=True))
                drawn[label] = [known.get(step) for step in steps]
            title, note = TITLES[name]
            said = "; ".join(f"{label} ends at {number(each.values[-1])}" for label, each in series.items())
            key = f"stage{index}-{name}"
            svg = plots.lines(key, steps, drawn, across="step", up=title.lower())
            yield Plot(key, f"Stage {index}: {title.lower()}", note, f"{title} by step: {said}.", svg)


def _shown(stage: StageRecord, name: str) -> Series | None:
    found = stage.series.get(name)
    return found if found and len(found.steps) > 1 else None


def labels_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Name run folders by their last part, by the whole path where two share it."""
    ends = [folder.resolve().name for folder in folders]
    return {str(folder) if ends.count(end) > 1 else end: folder for folder, end in zip(folders, ends, strict=True)}
