"""new, check: for people who write plugins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from stackloom.core.rows import CheckRow
from stackloom.output import console, print_json


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(new)
    app.command()(check)


def new(
    slot: str = typer.Argument(help="Slot of the plugin: optimizer, attention, data, model."),
    name: str = typer.Argument(help="Name of the technique: lower case with hyphens."),
    folder: Path = typer.Option(None, "--folder", help="Where to write the project; default ./stackloom-NAME."),
) -> None:
    """Write the project of a plugin that passes its own contract tests, ready to be changed."""
    from stackloom.scaffold import scaffold

    target = scaffold(slot, name, folder or Path(f"stackloom-{name}"))
    typer.echo(
        f"wrote {target}\n\nnext:\n  pip install -e {target}\n  pytest {target}\n  stackloom check {slot}.{name}"
    )


def check(
    target: str = typer.Argument(help="An installed plugin's id, a project or plugin folder, or a wheel."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for machines."),
) -> None:
    """Judge a plugin: manifest, imports, contract tests, docs, example; its code runs in subprocesses only."""
    from stackloom.check import check as judge
    from stackloom.check import passed
    from stackloom.core.rows import to_json

    if as_json:
        rows = judge(target)
        print_json(to_json(rows))
    else:
        with console().status(f"checking {target}"):
            rows = judge(target)
        print_checks(rows)
    if not passed(rows):
        raise typer.Exit(1)


def print_checks(rows: Sequence[CheckRow]) -> None:
    """Print check rows for people: one line each, the reason and the fix below a failure."""
    for row in rows:
        mark, colour = (
            ("ok  ", typer.colors.GREEN)
            if row.passed
            else ("FAIL", typer.colors.RED)
            if row.required
            else ("note", typer.colors.YELLOW)
        )
        typer.echo(f"{typer.style(mark, fg=colour)} {row.id}: {row.actual}")
        if not row.passed:
            typer.echo(f"       expected: {row.expected}")
            if row.fix:
                typer.echo("       fix: " + row.fix.replace("\n", "\n            "))
