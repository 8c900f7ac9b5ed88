"""How verbs print: JSON for machines, tables for people, notices on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stackloom.registry import Registry


def print_json(value: Any) -> None:
    """Print JSON on standard output."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def console() -> Console:
    """A console on standard output; wide enough for tables where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table for people."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


@contextmanager
def registry() -> Iterator[Registry]:
    """Open the registry and show its notices once."""
    from stackloom.registry import open_registry

    with open_registry() as opened:
        for notice in opened.notices:
            typer.secho(f"notice: {notice}", err=True, fg=typer.colors.YELLOW)
        yield opened
