"""Every generated page of the site, from the registry and, where there is a checkout, its benchmarks and tests."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackloom.core.catalogue import PluginRecord
from stackloom.core.slots import slots
from stackloom.pairs import read
from stackloom.registry import Registry
from stackloom.site.composer import composer_page
from stackloom.site.facts import Facts, gather
from stackloom.site.markdown import NO_EVIDENCE, badge, first_sentence_upper, interval, number, table, verdict
from stackloom.site.pairs_page import pairs_page
from stackloom.site.plugin_page import plugin_page


@dataclass(frozen=True)
class Contents:
    """What a site is made of.

    Attributes:
        registry: whose plugins and evidence it shows.
        plugins: ids to show.
        options: returns the JSON schema of a plugin's options; None imports no config, so that no plugin code runs.
        stacks: example stacks with the text of their plan.
        bench: folder of benchmark rows; may be absent.
        faults: folder of fault tests; may be absent.
        pairs: file of `stackloom pairs --out`; may be absent.
        grid: file of the composer's grid; may be absent.
    """

    registry: Registry
    plugins: Sequence[str]
    options: Callable[[PluginRecord], Mapping[str, Any]] | None = None
    stacks: Sequence[tuple[Path, str]] = ()
    bench: Path | None = None
    faults: Path | None = None
    pairs: Path | None = None
    grid: Path | None = None


def pages(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield each page: its path below the documentation's folder, and its Markdown."""
    found = [gather(contents.registry, plugin) for plugin in contents.plugins]
    yield "catalogue/index.md", catalogue(found)
    for facts in found:
        slot = facts.record.manifest.slot
        near = [other.record.id for other in found if other.record.manifest.slot == slot and other is not facts]
        schema = contents.options(facts.record) if contents.options else None
        yield f"catalogue/{facts.record.id}.md", plugin_page(facts, schema, near)
    yield "slots/index.md", slot_index(found)
    for name in sorted({*slots(), *(facts.record.manifest.slot for facts in found)}):
        yield f"slots/{name}.md", slot_page(name, [facts for facts in found if facts.record.manifest.slot == name])
    yield "papers/index.md", paper_index(found)
    for paper in sorted({facts.paper_file for facts in found if facts.paper}):
        yield f"papers/{paper}.md", paper_page([facts for facts in found if facts.paper and facts.paper_file == paper])
    yield "explore/matrix.md", matrix(found)
    yield "explore/compare.md", compare(found)
    if contents.pairs:
        yield "explore/pairs.md", pairs_page(read(contents.pairs), found)
    if contents.grid:
        yield "explore/composer.md", composer_page(contents.grid, "../assets/grid.js")
    if contents.stacks:
        yield "explore/stacks.md", stacks(contents.stacks)
    if contents.faults:
        yield "explore/survives.md", survives(contents.faults)
    if contents.bench:
        yield "explore/benchmarks.md", benchmarks(contents.bench)


def catalogue(found: Sequence[Facts]) -> str:
    """All plugins in one table that a script narrows by facet and sorts."""
    rows = [
        [
            f"[{facts.record.id}]({facts.record.id}.md)",
            facts.record.manifest.summary,
            facts.record.manifest.slot,
            f"[{facts.paper}](../papers/{facts.paper_file}.md)" if facts.paper else "",
            ", ".join(facts.record.manifest.can.dtypes),
            ", ".join(facts.record.manifest.can.devices),
            facts.record.manifest.lifecycle,
            facts.standing,
            facts.newest or "-",
            facts.record.distribution,
        ]
        for facts in found
    ]
    columns = ["plugin", "what", "slot", "paper", "dtypes", "devices", "lifecycle", "evidence", "measured on", "from"]
    return (
        "# Catalogue\n\nEvery plugin that was installed when this was built. Dtypes, devices and lifecycle are "
        f"{badge('declared', 'declared')}; evidence is {badge('measured', 'measured')}.\n\n"
        '<div class="facets" data-facets="slot,paper,dtypes,devices,lifecycle,evidence,from"></div>\n\n'
        + table(columns, rows)
    )


def slot_index(found: Sequence[Facts]) -> str:
    """All slots."""
    rows = [
        [
            f"[{name}]({name}.md)",
            slot.api,
            first_sentence_upper(slot.summary),
            ", ".join(slot.sits_in),
            str(sum(facts.record.manifest.slot == name for facts in found)),
        ]
        for name, slot in slots().items()
    ]
    return "# All slots\n\n" + table(["slot", "contract", "what", "sits in", "plugins"], rows)


def slot_page(name: str, found: Sequence[Facts]) -> str:
    """A slot's contract and all who keep it, side by side."""
    slot = slots().get(name)
    text = [f"# Slot: {name}\n"]
    if slot:
        methods = [
            [f"`{key}`", value.__doc__.strip().partition("\n")[0]]
            for key, value in vars(slot.protocol).items()
            if callable(value) and value.__doc__ and not key.startswith("_")
        ]
        sits = ", ".join(f"`{place}`" for place in slot.sits_in)
        text += [f"{first_sentence_upper(slot.summary)} (`{slot.api}`); sits in {sits}.\n", "## Contract\n"]
        text += [" ".join((slot.protocol.__doc__ or "").split()) + "\n"]
        text += [table(["method", "what"], methods)] if methods else []
        text += [table(["feature", "meaning"], [[f"`{key}`", value] for key, value in slot.features.items()])]
        text += [f"`stackloom.testing` tests it, here and in a third party's repository: `stackloom new {name}`.\n"]
    text += ["## Who fills it\n", side_by_side(found) if found else "Nobody yet.\n"]
    return "\n".join(text)


def side_by_side(found: Sequence[Facts]) -> str:
    """Plugins as columns, facts as rows."""
    columns = [comparison(facts) for facts in found]
    heads = [f"[{facts.record.id}](../catalogue/{facts.record.id}.md)" for facts in found]
    return table(["", *heads], [[key, *(column[key] for column in columns)] for key in columns[0]])


def comparison(facts: Facts) -> dict[str, str]:
    """What two plugins are compared by."""
    manifest = facts.record.manifest
    verdicts = [verdict(row, facts.why_stale(row)) + f" {row.claim.replace('_', ' ')}" for row in facts.rows]
    return {
        "what": manifest.summary,
        "paper": f"[{facts.paper}](../papers/{facts.paper_file}.md)" if facts.paper else "",
        "lifecycle": manifest.lifecycle,
        "determinism": manifest.determinism,
        "dtypes": ", ".join(manifest.can.dtypes),
        "devices": ", ".join(manifest.can.devices),
        "features": ", ".join(manifest.can.features) or "none",
        "needs": ", ".join(f"{name}{version}" for name, version in manifest.needs.items()) or "nothing",
        "conflicts": ", ".join(one.plugin for one in manifest.conflicts) or "none",
        "evidence": "<br>".join(verdicts) or badge("none", NO_EVIDENCE),
    }


def compare(found: Sequence[Facts]) -> str:
    """All plugins, of which a script shows two."""
    rows = [[f"[{one.record.id}](../catalogue/{one.record.id}.md)", *comparison(one).values()] for one in found]
    columns = ["plugin", *comparison(found[0])] if found else ["plugin"]
    return (
        "# Compare two plugins\n\n`stackloom compare A B` prints the same.\n\n"
        '<div class="compare"></div>\n\n' + table(columns, rows)
    )


def paper_index(found: Sequence[Facts]) -> str:
    """Every paper with what became of its claims."""
    rows = []
    for paper in sorted({facts.paper for facts in found if facts.paper}, key=str.lower):
        mine = [facts for facts in found if facts.paper == paper]
        verdicts = [row.verdict for facts in mine for row in facts.rows]
        counts = [verdicts.count(kind) for kind in ("reproduced", "direction", "not_reproduced", "error")]
        rows.append(
            [
                f"[{paper}]({mine[0].paper_file}.md)",
                ", ".join(f"[{facts.record.id}](../catalogue/{facts.record.id}.md)" for facts in mine),
                str(sum(len(facts.record.manifest.claims) for facts in mine)),
                *map(str, counts),
            ]
        )
    columns = ["paper", "plugins", "claims", "reproduced", "direction only", "not reproduced", "error"]
    text = "Measured rows by verdict; a claim that is measured at several scales has a row for each."
    return f"# Papers\n\n{text}\n\n" + table(columns, rows)


def paper_page(found: Sequence[Facts]) -> str:
    """One paper: its plugins, and each claim with what was measured."""
    paper = next(facts.record.manifest.paper for facts in found if facts.record.manifest.paper)
    text = [f"# {found[0].paper}\n", f"[{paper.title}]({paper.url})\n" if paper.url else f"{paper.title}\n"]
    for facts in found:
        rows = []
        for claim in facts.record.manifest.claims:
            mine = [row for row in facts.rows if row.claim == claim.name]
            said = number(claim.paper) if claim.paper is not None else "-"
            head = [claim.statement, claim.where, said]
            rows += [
                [*head, number(row.ours), interval(row), claim.unit, verdict(row, facts.why_stale(row)), row.scale]
                for row in mine
            ] or [[*head, "-", "-", claim.unit, badge("none", NO_EVIDENCE), "-"]]
        columns = ["claim", "where", "paper", "ours", "95 % interval", "unit", "verdict", "scale"]
        text.append(f"## [{facts.record.id}](../catalogue/{facts.record.id}.md)\n\n{facts.record.manifest.summary}\n")
        text.append(table(columns, rows) if rows else "It claims nothing.\n")
    return "\n".join(text)


def matrix(found: Sequence[Facts]) -> str:
    """Plugins by device and dtype: what is declared, and on which kind of device a claim was measured."""
    kinds = ("cpu", "cuda")
    dtypes = sorted({dtype for facts in found for dtype in facts.record.manifest.can.dtypes})
    rows = []
    for facts in found:
        can = facts.record.manifest.can
        measured = {"cuda" if row.scale == "gpu" else "cpu" for row in facts.rows if not facts.why_stale(row)}
        rows.append(
            [
                f"[{facts.record.id}](../catalogue/{facts.record.id}.md)",
                *(
                    badge("measured", "measured")
                    if kind in measured
                    else badge("declared", "declared")
                    if kind in can.devices
                    else "no"
                    for kind in kinds
                ),
                *(badge("declared", "declared") if dtype in can.dtypes else "no" for dtype in dtypes),
            ]
        )
    return (
        "# Matrix\n\nDeclared: the manifest says so, and the contract tests run it. Measured: current evidence of a "
        "claim was made on that kind of device. Evidence does not tell dtypes apart.\n\n"
        + table(["plugin", *kinds, *dtypes], rows)
    )


def stacks(examples: Sequence[tuple[Path, str]]) -> str:
    """The example stacks, each with its plan."""
    text = ["# Stacks\n", "Each file of `examples/` with its plan; `stackloom run FILE` runs it.\n"]
    for path, plan in examples:
        source = path.read_text(encoding="utf-8").rstrip()
        text.append(f"## {path.stem.replace('_', ' ')}\n\n```yaml\n{source}\n```\n\n```text\n{plan}\n```\n")
    return "\n".join(text)


def survives(folder: Path) -> str:
    """The fault battery: every fault test as a sentence, read from the tests without running them."""
    text = [
        "# What survives\n",
        "Each line is a test that breaks something on purpose; `pytest -m faults` runs them all. "
        f"They are {badge('checked', 'checked')} by the slow tier.\n",
    ]
    for path in sorted(folder.glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        laws = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        sentences = [
            f"* {first_sentence_upper(law.removeprefix('test_').replace('_', ' '))}"
            for law in laws
            if law.startswith("test_")
        ]
        about = (ast.get_docstring(tree) or path.stem).replace("\n", " ")
        title = path.stem.removeprefix("test_").replace("_", " ")
        lines = "\n".join(sentences)
        text.append(f"## {first_sentence_upper(title)}\n\n{about}\n\n{lines}\n")
    return "\n".join(text)


def benchmarks(folder: Path) -> str:
    """Every committed benchmark row; a missed bar is said as plainly as a met one."""
    text = ["# Benchmarks\n", "Ratio is the baseline's time over ours; above 1 we are faster.\n"]
    met = {
        True: badge("measured reproduced", "met"),
        False: badge("measured not_reproduced", "missed"),
        None: "no bar",
    }
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            [
                str(row["name"]),
                str(row["case"]),
                number(row["ratio"]),
                number(row["bar"]),
                met[row["met"]],
                number(row["floor_fraction"]),
                str(row["device"]),
                str(row["date"])[:10],
            ]
            for row in rows
            if "ratio" in row
        ]
        if cells:
            columns = ["what", "case", "ratio", "bar", "verdict", "share of the floor", "device", "date"]
            text.append(f"## {path.stem}\n\n{table(columns, cells)}")
    return "\n".join(text)
