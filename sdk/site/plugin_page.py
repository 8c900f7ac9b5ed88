"""The page of one plugin: what was measured first, then what it declares, its options, its words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stackloom.site.facts import Facts
from stackloom.site.markdown import NO_EVIDENCE, badge, deeper, interval, number, table, verdict


def plugin_page(facts: Facts, schema: Mapping[str, Any] | None, neighbours: list[str]) -> str:
    """Return the page.

    Args:
        facts: of the plugin.
        schema: JSON schema of its options; None when its config was not to be imported.
        neighbours: other plugins of its slot.
    """
    manifest = facts.record.manifest
    return "\n".join(
        [
            f"# {facts.record.id}\n",
            manifest.summary + "\n",
            *([manifest.description + "\n"] if manifest.description else []),
            "## Claims and evidence\n",
            claims(facts),
            "## What it declares\n",
            declared(facts, neighbours),
            *conflicts(facts),
            "## Install and a first stack\n",
            install(facts, schema),
            "## Options\n",
            options(facts, schema),
            deeper(readme(facts)),
        ]
    )


def claims(facts: Facts) -> str:
    """The claims table: the paper's value, ours, the interval, the verdict, and how to repeat it."""
    if not facts.record.manifest.claims:
        return "It claims nothing: it is here to be compared with.\n"
    rows = []
    for claim in facts.record.manifest.claims:
        head = [f"**{claim.name.replace('_', ' ')}**: {claim.statement} ({claim.where})"]
        unit = f" {claim.unit}" if claim.unit else ""
        paper = number(claim.paper) + unit if claim.paper is not None else "-"
        found = [row for row in facts.rows if row.claim == claim.name]
        if not found:
            command = f"`stackloom repro {facts.record.id} --claim {claim.name} --scale {claim.scales[0]}`"
            rows.append([*head, paper, "-", "-", badge("none", NO_EVIDENCE), ", ".join(claim.scales), command, "", ""])
        for row in found:
            ours = row.error.splitlines()[0] if row.error else number(row.ours) + unit
            state = verdict(row, facts.why_stale(row))
            command = f"`{row.command}`" if row.command else "-"
            rows.append([*head, paper, ours, interval(row), state, row.scale, command, row.device, row.date[:10]])
    columns = ["claim", "paper", "ours", "95 % interval", "verdict", "scale", "command", "device", "date"]
    return table(columns, rows)


def declared(facts: Facts, neighbours: list[str]) -> str:
    """What the manifest says; nothing here is measured."""
    record, manifest = facts.record, facts.record.manifest
    paper = manifest.paper
    words = badge("declared", "declared")
    rows = [
        ["slot", f"[`{manifest.slot_api}`](../slots/{manifest.slot}.md)"],
        ["from", f"{record.distribution} {record.version}"],
        ["lifecycle", manifest.lifecycle],
        ["determinism", manifest.determinism],
        ["licence", manifest.licence],
        ["dtypes", ", ".join(manifest.can.dtypes)],
        ["devices", ", ".join(manifest.can.devices)],
        ["features", ", ".join(manifest.can.features) or "none"],
        ["needs", ", ".join(f"{name}{version}" for name, version in manifest.needs.items()) or "nothing"],
        ["compare with", ", ".join(f"[{other}]({other}.md)" for other in neighbours) or "-"],
    ]
    if paper:
        title = f"[{paper.title}]({paper.url})" if paper.url else paper.title
        rows.insert(0, ["paper", f"{title}; [what became of its claims](../papers/{facts.paper_file}.md)"])
    return f"{words} in its manifest; the slot's contract tests hold it to that.\n\n" + table(["fact", "value"], rows)


def conflicts(facts: Facts) -> list[str]:
    """Plugins that must not be in the same stage."""
    found = [[f"`{one.plugin}`", one.reason] for one in facts.record.manifest.conflicts]
    return ["## Conflicts\n", table(["with", "why"], found)] if found else []


def install(facts: Facts, schema: Mapping[str, Any] | None) -> str:
    """The command that installs it and the line of a stack that names it."""
    required = [f"{name}: ..." for name in (schema or {}).get("required", ())]
    use = ", ".join([f"use: {facts.record.id}", *required])
    slot = facts.record.manifest.slot
    return (
        f"```console\npip install {facts.record.distribution}\nstackloom show {facts.record.id}\n```\n\n"
        f"In a stack ([where the slot sits](../slots/{slot}.md)):\n\n```text\n{slot}: {{{use}}}\n```\n"
    )


def options(facts: Facts, schema: Mapping[str, Any] | None) -> str:
    """Every option with default, unit and source."""
    if schema is None:
        command = f"`stackloom show {facts.record.id} --schema`"
        return f"This site was built without importing the plugin's code; {command} lists them.\n"
    rows = [
        [
            f"`{name}`",
            "required" if name in schema.get("required", ()) else f"`{json.dumps(field.get('default'))}`",
            field.get("unit", ""),
            field.get("source", ""),
            field.get("description", ""),
        ]
        for name, field in schema.get("properties", {}).items()
    ]
    return table(["option", "default", "unit", "source", "meaning"], rows) if rows else "It has none.\n"


def readme(facts: Facts) -> str:
    """The words beside its manifest, if there are any."""
    path = facts.record.folder / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
