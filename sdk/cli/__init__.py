"""The `stackloom` command. Verbs live in this folder's modules and import what they need when called."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import typer

from stackloom.core.errors import StackloomError


def make_app() -> typer.Typer:
    """Build the app from every module of this folder; a module adds its verbs in `register(app)`."""
    app = typer.Typer(
        name="stackloom",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Compose agentic-model stacks from research plugins.",
    )

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
        debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    ) -> None:
        pass

    for found in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{found.name}").register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"stackloom {version('stackloom')}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error that names who should act, 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # works before and after the verb
    try:
        make_app()([word for word in given if word != "--debug"], prog_name="stackloom")
    except StackloomError as error:
        if debug:
            raise
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        typer.secho(
            f"({type(error).__name__}: for {error.acts} to act on; --debug shows the traceback)", err=True, dim=True
        )
        sys.exit(1)
