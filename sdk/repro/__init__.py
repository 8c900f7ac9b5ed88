"""Reproduces what plugins claim: runs their claim functions, judges the figures and keeps them as evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stackloom.core.catalogue import PluginRecord
from stackloom.core.errors import ConfigError, FitError, StackloomError, did_you_mean
from stackloom.core.manifest import Claim
from stackloom.core.rows import EvidenceRow, Scale
from stackloom.registry import Registry
from stackloom.registry.storage import default_home
from stackloom.repro import files
from stackloom.repro.context import Watcher, Workbench
from stackloom.repro.measure import ClaimFunction, functions, measure, seed_everything

SCALES: dict[Scale, tuple[int, float]] = {"cpu": (3, 15.0), "cpu-full": (5, 720.0), "gpu": (5, 60.0)}
"""Per scale: how many seeds, and the minutes of one claim."""


@dataclass(frozen=True)
class Task:
    """One claim to be measured."""

    record: PluginRecord
    claim: Claim
    function: ClaimFunction
    command: str


@dataclass(frozen=True)
class Outcome:
    """What became of a claim.

    Attributes:
        row: its evidence.
        seconds: this call's; 0 where the evidence was there already.
        failure: what it raised.
        over_budget: whether it took longer than it was given.
    """

    row: EvidenceRow
    seconds: float
    failure: StackloomError | None = None
    over_budget: bool = False


def reproduce(
    plugins: Sequence[str],
    registry: Registry,
    *,
    scale: str = "cpu",
    claims: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    minutes: float | None = None,
    out: Path | None = None,
    again: bool = False,
    watcher: Watcher | None = None,
) -> Iterator[Outcome]:
    """Measure claims one after the other; each row is kept as evidence before the next claim starts.

    Args:
        plugins: ids, whose claims modules are imported; no others are.
        registry: where plugins are found, and which keeps the rows.
        scale: "cpu", "cpu-full" or "gpu".
        claims: names of the claims; all that have this scale if empty.
        seeds: for every claim; the first 3 or 5 numbers if absent, by scale.
        minutes: budget of one claim; by scale if absent.
        out: folder of the evidence files; see `files.evidence_file`.
        again: measure what has evidence for the same files, scale, seeds and command, too.
        watcher: who is told about progress.

    Raises:
        ConfigError: an unknown plugin, claim or scale, or nothing to do.
        FitError: scale "gpu" without a GPU.
        PluginError: a claim without its function.
        ArtifactError: an evidence file holds something else.
    """
    known = _scale(scale)
    count, default_minutes = SCALES[known]
    chosen = tuple(range(count)) if seeds is None else tuple(seeds)
    if not chosen:
        raise ConfigError("no seed", where="--seeds", fix="give at least one, for instance 0,1,2")
    budget = 60 * (default_minutes if minutes is None else minutes)
    extra = "" if minutes is None else f" --budget-minutes {minutes:g}"
    tasks = _tasks(plugins, registry, known, claims, f" --seeds {','.join(map(str, chosen))}{extra}")
    if known == "gpu":
        _require_gpu()
    return _outcomes(tasks, registry, known, chosen, budget, out, again, watcher or Watcher())


def _outcomes(
    tasks: Sequence[Task],
    registry: Registry,
    scale: Scale,
    seeds: Sequence[int],
    budget: float,
    out: Path | None,
    again: bool,
    watcher: Watcher,
) -> Iterator[Outcome]:
    for task in tasks:
        record, path = task.record, files.evidence_file(task.record, scale, out)
        known = [*registry.evidence.rows(record.id, task.claim.name), *files.read(path)]
        row = None if again else next((row for row in known if _speaks_for(row, task, scale, registry)), None)
        if row is not None:
            outcome = Outcome(row, 0.0)
        else:
            watcher.say(f"measuring {record.id} {task.claim.name}")
            seed_everything(seeds[0])
            bench = Workbench(registry, scale, seeds, budget, default_home() / "repro", watcher)
            stamp = {"commit": files.commit(record), "command": task.command}
            made, failure = measure(record, task.claim, task.function, bench, stamp)
            outcome = Outcome(made, bench.seconds, failure, bench.seconds_left < 0)
            registry.evidence.append(made)
        rows = files.merge(path, [outcome.row], [claim.name for claim in record.manifest.claims])
        _draw(path, record, rows)
        yield outcome


def _draw(path: Path, record: PluginRecord, rows: Sequence[EvidenceRow]) -> None:
    """Write the page beside the evidence where there is something to draw, and none where there is not."""
    from stackloom.registry.atomic import write_atomic

    page = path.with_suffix(".html")
    if any(row.details.keys() & {"curves", "tables"} for row in rows):
        from stackloom.repro.page import render

        write_atomic(page, render(record, rows).encode())
    else:
        page.unlink(missing_ok=True)


def _speaks_for(row: EvidenceRow, task: Task, scale: Scale, registry: Registry) -> bool:
    """Whether a row is the measurement that is asked for, made with the very files that are installed."""
    if (row.claim, row.scale, row.command) != (task.claim.name, scale, task.command) or row.verdict == "error":
        return False
    measured = {name: digest for name, digest in row.versions.items() if "." in name and len(digest) == 64}
    installed = set(registry.ids())
    return task.record.id in measured and all(
        name in installed and registry.get(name).digest == digest for name, digest in measured.items()
    )


def _scale(name: str) -> Scale:
    for scale in SCALES:
        if scale == name:
            return scale
    known = did_you_mean(name, SCALES, otherwise=f"known scales: {', '.join(SCALES)}")
    raise ConfigError(f"unknown scale {name!r}", where="--scale", fix=known)


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise FitError("scale gpu needs a CUDA device, and torch finds none", where="--scale", fix="--scale cpu")


def _tasks(plugins: Sequence[str], registry: Registry, scale: Scale, names: Sequence[str], options: str) -> list[Task]:
    """Every claim that is asked for, with its function, before any is measured."""
    records = [registry.get(plugin) for plugin in dict.fromkeys(plugins)]
    every = {claim.name for record in records for claim in record.manifest.claims}
    for name in names:
        if name not in every:
            raise ConfigError(
                f"{' and '.join(record.id for record in records)} claim{'s' if len(records) == 1 else ''} no {name!r}",
                where="--claim",
                fix=did_you_mean(name, every, otherwise=f"claims: {', '.join(sorted(every)) or 'none'}"),
            )
    tasks = []
    for record in records:
        wanted = [
            claim for claim in record.manifest.claims if scale in claim.scales and (not names or claim.name in names)
        ]
        made = functions(record, wanted)
        tasks += [
            Task(
                record,
                claim,
                made[claim.name],
                f"stackloom repro {record.id} --claim {claim.name} --scale {scale}{options}",
            )
            for claim in wanted
        ]
    if not tasks:
        scales = sorted({scale for record in records for claim in record.manifest.claims for scale in claim.scales})
        raise ConfigError(
            f"nothing is claimed at scale {scale}" if every else "nothing is claimed",
            where=", ".join(record.id for record in records),
            fix=f"claims exist at: {', '.join(scales)}" if scales else "`stackloom show ID` lists a plugin's claims",
        )
    return tasks
