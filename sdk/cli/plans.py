"""plan: what fits, what clashes and what it costs, before a GPU hour is spent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from stackloom.output import console, registry


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(plan)


def plan(
    stack: str = typer.Argument(
        help="A stack (YAML), a link from the composer, whose fragment holds one and from which nothing is fetched, or "
        "a saved plan (JSON), which is checked against what is installed."
    ),
    device: str = typer.Option(None, help="Plan for this device: h100, a100, cpu, ...; see `stackloom show h100`."),
    save: Path = typer.Option(None, help="Write the plan to this file."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan as JSON."),
) -> None:
    """Resolve a stack and print its picks, fits, costs and conflicts. Exit code 1 when it cannot work."""
    from stackloom.core.errors import ConfigError
    from stackloom.fragment import decode, is_link
    from stackloom.plan_table import plan_table
    from stackloom.stack import Plan, Stack

    swept: Mapping[str, Sequence[object]] = {}
    with registry() as opened:
        if not is_link(stack) and stack.endswith(".json"):
            if device:
                raise ConfigError(
                    "a saved plan has its device", where=stack, fix="plan the stack file for another device"
                )
            made = Plan.from_file(Path(stack))
            made.verify(opened)
        else:
            read = Stack.from_yaml(decode(stack)) if is_link(stack) else Stack.from_file(stack)
            made, swept = read.plan(device=device, catalogue=opened), read.spec.sweep
    if save:
        made.save(save)
    if as_json:
        summary = {
            "ok": made.ok,
            "problems": [str(problem) for problem in made.problems()],
            "missing": made.missing(),
            "peak_bytes": made.peak_bytes,
            "seconds": made.seconds,
            "digest": made.digest,
        }
        typer.echo(json.dumps(summary | {"plan": made.model_dump(mode="json")}, indent=1))
    else:
        console().print(plan_table(made))
        if swept:
            counts = ", ".join(f"{len(values)} values of {path}" for path, values in swept.items())
            typer.echo(f"this is the stack as written; `stackloom run` runs it with {counts}")
        if save:
            typer.echo(f"saved to {save}")
    if not made.ok:
        raise typer.Exit(1)
