"""What the site knows of each plugin: its record, its newest evidence for every claim and scale, what is stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from stackloom.core.catalogue import PluginRecord
from stackloom.core.rows import EvidenceRow
from stackloom.registry import Registry
from stackloom.registry.evidence import digest_of
from stackloom.site.markdown import slug


@dataclass(frozen=True)
class Facts:
    """One plugin.

    Attributes:
        record: as installed.
        rows: its newest evidence of each claim and scale, in the order of its claims.
        stale: why a row speaks of another state of the plugin, by the row's digest.
    """

    record: PluginRecord
    rows: tuple[EvidenceRow, ...]
    stale: Mapping[str, str]

    def why_stale(self, row: EvidenceRow) -> str:
        """Why `row` is stale; empty when it is current."""
        return self.stale.get(digest_of(row), "")

    @cached_property
    def newest(self) -> str:
        """Day of the newest evidence; empty without any."""
        return max((row.date[:10] for row in self.rows), default="")

    @cached_property
    def standing(self) -> str:
        """What the evidence comes to, for the catalogue's facet; the newest row of each claim counts."""
        if not self.record.manifest.claims:
            return "claims nothing"
        latest = {row.claim: row for row in sorted(self.rows, key=lambda row: row.date)}
        if not latest:
            return "no evidence"
        verdicts = {row.verdict for row in latest.values()}
        if all(self.why_stale(row) for row in latest.values()):
            return "stale"
        if len(latest) < len(self.record.manifest.claims):
            return "partly measured"
        return "all reproduced" if verdicts == {"reproduced"} else "not all reproduced"

    @property
    def paper(self) -> str:
        """Short name of the paper; empty without one."""
        paper = self.record.manifest.paper
        return paper.page or paper.title if paper else ""

    @property
    def paper_file(self) -> str:
        """Name of the paper's page without its ending."""
        return slug(self.paper)


def gather(registry: Registry, plugin: str) -> Facts:
    """Read one plugin's facts; no plugin code runs."""
    record = registry.get(plugin)
    newest: dict[tuple[str, str], EvidenceRow] = {}
    for row in registry.evidence.rows(plugin):  # the newest first
        newest.setdefault((row.claim, row.scale), row)
    names = [claim.name for claim in record.manifest.claims]
    rows = sorted(
        (row for row in newest.values() if row.claim in names), key=lambda row: (names.index(row.claim), row.scale)
    )
    return Facts(record, tuple(rows), {digest_of(found.row): found.reason for found in registry.evidence.stale(record)})
