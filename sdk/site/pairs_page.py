"""The page of pairs: were these two ever run together, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stackloom.pairs import PairRow, by_pair
from stackloom.site.facts import Facts
from stackloom.site.markdown import badge, table

KINDS = {"ran": "checked", "refused": "measured direction", "failed": "measured error"}


def pairs_page(rows: Sequence[PairRow], found: Sequence[Facts]) -> str:
    """Slots by slots first, then what did not run and why, then every pair."""
    digests = {facts.record.id: facts.record.digest for facts in found}
    pairs = {
        tuple(sorted(pair)): row for pair, row in by_pair(rows).items() if all(plugin in digests for plugin in pair)
    }
    made: Counter[tuple[str, str]] = Counter()
    ran: Counter[tuple[str, str]] = Counter()
    cells = []
    for (one, two), row in sorted(pairs.items()):
        slots = (one.partition(".")[0], two.partition(".")[0])
        made[slots] += 1
        ran[slots] += row.outcome == "ran"
        stale = any(row.versions.get(plugin) != digests[plugin] for plugin in (one, two))
        links = [f"[{plugin}](../catalogue/{plugin}.md)" for plugin in (one, two)]
        cells.append([*links, badge(KINDS[row.outcome], row.outcome, stale=stale), row.reason, row.date[:10]])
    names = sorted({slot for pair in made for slot in pair})
    counts = [
        [
            f"**{one}**",
            *(f"{ran[key]} of {made[key]}" if made[key := (min(one, two), max(one, two))] else "-" for two in names),
        ]
        for one in names
    ]
    alone = [[f"`{row.plugins[0]}`", row.reason] for row in rows if len(row.plugins) == 1]
    devices = ", ".join(sorted({row.device for row in rows if row.stack}))
    columns = ["plugin", "with", "result", "reason", "measured on"]
    return "\n".join(
        [
            "# Pairs\n",
            f"`stackloom pairs` ran tiny stacks on {devices} until every two plugins of different slots had met: "
            f"{sum(ran.values())} of {len(pairs)} pairs ran. It shows that they run, not that they do good: the models "
            "are random and two layers deep. A refused pair says why.\n",
            "## Slots\n",
            table(["ran", *names], counts),
            "## Never in a stack of this run\n",
            table(["plugin", "why"], alone) if alone else "None.\n",
            "## Every pair\n",
            '<div class="facets" data-facets="plugin,with,result"></div>\n',
            table(columns, cells),
        ]
    )
