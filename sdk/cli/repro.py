"""repro: what a paper says, what we measure, and a verdict that is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stackloom.core.errors import ConfigError
from stackloom.output import print_json, print_table, registry

if TYPE_CHECKING:
    from stackloom.repro import Outcome

_COLOURS = {
    "reproduced": typer.colors.GREEN,
    "direction": typer.colors.YELLOW,
    "not_reproduced": typer.colors.YELLOW,
    "error": typer.colors.RED,
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(repro)


def repro(
    plugins: list[str] = typer.Argument(help="Ids of the plugins whose claims are measured."),
    claim: list[str] = typer.Option([], "--claim", help="Only this claim; may be given several times."),
    scale: str = typer.Option("cpu", help="cpu (minutes), cpu-full (hours) or gpu."),
    seeds: str = typer.Option(None, help="Seeds, for instance 0,1,2; default by scale."),
    budget_minutes: float = typer.Option(None, min=0, help="Time that one claim may take; default by scale."),
    out: Path = typer.Option(
        None, "--out", help="Folder of the evidence; default docs/evidence/claims of the plugin's source tree."
    ),
    again: bool = typer.Option(False, "--again", help="Measure what is measured already, too."),
    as_json: bool = typer.Option(False, "--json", help="Print the rows as JSON."),
) -> None:
    """Measure what plugins claim, judge it against the paper and keep the evidence. Exit code 1 if a claim fails."""
    from stackloom.repro import files, reproduce

    with registry() as opened, _live() as watcher:
        outcomes = []
        for outcome in reproduce(
            plugins,
            opened,
            scale=scale,
            claims=claim,
            seeds=_seeds(seeds),
            minutes=budget_minutes,
            out=out,
            again=again,
            watcher=watcher,
        ):
            outcomes.append(outcome)
            watcher.done(outcome)
        written = {
            files.evidence_file(opened.get(outcome.row.plugin), outcome.row.scale, out): None for outcome in outcomes
        }
    if as_json:
        print_json([outcome.row.model_dump(mode="json") for outcome in outcomes])
    else:
        _print(outcomes)
        for path in written:
            typer.echo(
                f"evidence: {path}"
                + (f" and {path.with_suffix('.html').name}" if path.with_suffix(".html").exists() else "")
            )
    if failures := [outcome.failure for outcome in outcomes if outcome.failure]:
        for failure in failures[1:]:
            typer.secho(f"error: {failure}", err=True, fg=typer.colors.RED)
        raise failures[0]


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise ConfigError(f"{text!r} is no list of seeds", where="--seeds", fix="write numbers with commas: 0,1,2")
    return [int(word) for word in text.split(",")]


def _live() -> Any:
    """A watcher that shows the running claim on a terminal and writes lines elsewhere, both on standard error."""
    from rich.console import Console

    from stackloom.repro.context import Watcher

    console = Console(stderr=True, highlight=False)
    status = console.status("") if console.is_terminal else nullcontext()

    class Live(Watcher):
        def __enter__(self) -> Live:
            status.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            status.__exit__(None, None, None)

        def say(self, text: str) -> None:
            typer.secho(f"  {text}", err=True, dim=True)

        def step(self, text: str) -> None:
            if status_line := getattr(status, "update", None):
                status_line(text)

        def done(self, outcome: Outcome) -> None:
            row = outcome.row
            how = "has evidence already" if not outcome.seconds else f"{outcome.seconds:.1f} s"
            if outcome.over_budget:
                how += ", over its budget"
            verdict = typer.style(row.verdict, fg=_COLOURS[row.verdict])
            typer.echo(f"{row.plugin} {row.claim}: {verdict} ({how})", err=True)

    return Live()


def _print(outcomes: Sequence[Outcome]) -> None:
    rows = [outcome.row for outcome in outcomes]
    print_table(
        ("plugin", "claim", "paper", "baseline", "ours", "95 % interval", "unit", "verdict", "seconds"),
        [
            [
                row.plugin,
                row.claim,
                _number(row.paper),
                _number(row.baseline),
                _number(row.ours),
                f"{row.interval[0]:.5g} to {row.interval[1]:.5g}" if row.interval else "-",
                row.unit,
                row.verdict,
                f"{row.seconds:.1f}" + (" (over budget)" if outcome.over_budget else ""),
            ]
            for row, outcome in zip(rows, outcomes, strict=True)
        ],
        f"scale {rows[0].scale}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
