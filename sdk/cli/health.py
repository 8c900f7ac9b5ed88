"""doctor: what works here and what does not."""

from __future__ import annotations

import typer

from stackloom.output import print_json, registry


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(doctor)


def doctor(
    plugin: str = typer.Option(
        None, "--import", metavar="ID", help="Import this plugin in a subprocess and show what happens."
    ),
    timeout: float = typer.Option(60.0, help="Seconds until that import is stopped.", min=0.1),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for machines."),
) -> None:
    """Report on Python, device, extras, registry and every plugin, from metadata alone."""
    from stackloom.cli.author import print_checks
    from stackloom.core.rows import to_json
    from stackloom.doctor import doctor as examine
    from stackloom.doctor import import_plugin

    with registry() as opened:
        rows = import_plugin(opened, plugin, timeout) if plugin else examine(opened)
    if as_json:
        print_json(to_json(rows))
    else:
        print_checks(rows)
    if any(row.required and not row.passed for row in rows):
        raise typer.Exit(1)
