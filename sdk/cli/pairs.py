"""pairs: which plugins have run together."""

from __future__ import annotations

from pathlib import Path

import typer

from stackloom.output import print_json, registry


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(pairs)


def pairs(
    out: Path = typer.Option(None, help="Write the rows to this JSON file, for the site to show."),
    as_json: bool = typer.Option(False, "--json", help="Print the rows as JSON for machines."),
) -> None:
    """Run tiny stacks on this CPU until every two plugins of different slots have met; says which cannot."""
    from stackloom.pairs import run_pairs, summary, write

    with registry() as opened:
        rows = run_pairs(opened, say=lambda text: typer.echo(text, err=True))
    if out:
        write(out, rows)
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
    else:
        typer.echo(summary(rows))
