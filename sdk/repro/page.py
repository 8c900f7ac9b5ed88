"""The page beside a plugin's evidence: its claims, what we measured, curves and tables, in one self-contained file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stackloom.core.catalogue import PluginRecord
from stackloom.core.claims import Curve, Table
from stackloom.core.rows import EvidenceRow
from stackloom.report import page as report
from stackloom.report import plots


@dataclass(frozen=True)
class Figure:
    """A drawing with its words."""

    title: str
    alt: str
    svg: Markup


def render(record: PluginRecord, rows: Sequence[EvidenceRow]) -> str:
    """Return the page; equal rows give equal bytes."""
    folders = [Path(__file__).parent, Path(report.__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": report.number}
    return environment.get_template("evidence.html.tmpl").render(
        record=record,
        rows=rows,
        claims={claim.name: claim for claim in record.manifest.claims},
        figures={row.claim: list(_figures(row)) for row in rows},
        tables={row.claim: [Table.model_validate(item) for item in row.details.get("tables", ())] for row in rows},
    )


def _figures(row: EvidenceRow) -> Iterator[Figure]:
    for number, item in enumerate(row.details.get("curves", ())):
        curve = Curve.model_validate(item)
        svg = plots.lines(f"{row.claim}-{number}", curve.x, curve.series, across=curve.across, up=curve.up)
        yield Figure(curve.title, f"{curve.up} over {curve.across}: {', '.join(curve.series)}", svg)
