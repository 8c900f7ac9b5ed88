"""bench: measured speed, with its error beside it."""

from __future__ import annotations

import typer

from stackloom.output import print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(bench)


def bench(
    names: list[str] = typer.Argument(None, help="Families to run; none lists them."),
    device: str = typer.Option("cpu", help="cpu or cuda, for ops and the engine."),
    quick: bool = typer.Option(
        False, "--quick", help="Fewer sizes and repetitions: a smoke test, not a figure to quote."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for machines."),
) -> None:
    """Measure ops, the registry, planning and the command line's start."""
    from stackloom.bench import families, run

    if not names:
        typer.echo("families: " + ", ".join(families()))
        return
    rows = run(names, device=device, quick=quick)
    if as_json:
        print_json(rows)
        return
    columns = ("name", "case", "ratio", "bar", "met", "floor_fraction", "error", "device")
    print_table(
        (*columns, "measured"),
        [[*(_cell(row.get(column)) for column in columns), str(row.get("measured", ""))] for row in rows],
    )


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
