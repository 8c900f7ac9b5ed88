"""list, search, show, compare: read the registry; no plugin code runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from stackloom.core.errors import ConfigError, did_you_mean
from stackloom.output import console, print_json, print_table, registry

if TYPE_CHECKING:
    from stackloom.core.rows import PluginRow

_JSON = typer.Option(False, "--json", help="Print JSON for machines.")
_COLUMNS = ("id", "slot", "version", "lifecycle", "paper", "origin")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("list")(list_plugins)
    app.command()(search)
    app.command()(show)
    app.command()(compare)


def _table(rows: Sequence[PluginRow], total: int, as_json: bool) -> None:
    from stackloom.core.rows import to_json

    if as_json:
        print_json(to_json(rows))
        return
    print_table(_COLUMNS, [[getattr(row, column) for column in _COLUMNS] for row in rows])
    if total > len(rows):
        typer.echo(f"{len(rows)} of {total} plugins; --limit {total} or --json shows all")


def list_plugins(
    slot: str = typer.Option(None, help="Only plugins of this slot."),
    paper: str = typer.Option(None, help="Only plugins of this paper."),
    lifecycle: str = typer.Option(None, help="experimental, stable or deprecated."),
    origin: str = typer.Option(None, help="Only plugins of this distribution."),
    limit: int = typer.Option(200, min=1, help="Rows of the table; --json prints all."),
    as_json: bool = _JSON,
) -> None:
    """List the installed plugins."""
    with registry() as opened:
        rows = opened.rows(slot=slot, paper=paper, lifecycle=lifecycle, origin=origin)
        _table(rows if as_json else rows[:limit], len(rows), as_json)
        if (problems := opened.problems()) and not as_json:
            typer.secho(
                f"{len(problems)} plugin{'s' if len(problems) > 1 else ''} cannot be used: see `stackloom doctor`",
                err=True,
                fg=typer.colors.YELLOW,
            )


def search(
    words: list[str] = typer.Argument(help="Words to look for."),
    slot: str = typer.Option(None, help="Only plugins of this slot."),
    paper: str = typer.Option(None, help="Only plugins of this paper."),
    dtype: str = typer.Option(None, help="Only plugins that compute in this dtype."),
    device: str = typer.Option(None, help="Only plugins that run on this device type."),
    as_json: bool = _JSON,
) -> None:
    """Find plugins by what they do, with counts per facet."""
    from stackloom.core.rows import to_json

    with registry() as opened:
        found = opened.search(" ".join(words), slot=slot, paper=paper, dtype=dtype, device=device)
    if as_json:
        print_json({"rows": to_json(found.rows), "facets": found.facets, "suggestion": found.hint})
    elif found.rows:
        _table(found.rows, len(found.rows), False)
        for name, counts in found.facets.items():
            if counts:
                typer.echo(f"{name}: " + ", ".join(f"{value or '-'} {number}" for value, number in counts.items()))
    else:
        typer.echo(f"nothing found{'; ' + found.hint if found.hint else ''}")


def show(
    name: str = typer.Argument(None, help="A plugin id, a slot, a stage or a device."),
    schema: bool = typer.Option(
        False, "--schema", help="Print the JSON Schema of plugin.toml (without a name) or of the options."
    ),
    as_json: bool = _JSON,
) -> None:
    """Show a plugin, a slot, a stage or a device; --schema shows options, for which it imports the plugin's config."""
    from stackloom.core.devices import device_table
    from stackloom.core.manifest import Manifest
    from stackloom.core.slots import slots
    from stackloom.core.stages import STAGES

    if name is None:
        if not schema:
            raise ConfigError(
                "nothing to show", fix="name a plugin, a slot, a stage or a device; or --schema for plugin.toml"
            )
        print_json(Manifest.model_json_schema())
    elif name in STAGES or name in slots():
        if name in STAGES:
            _show_schema(STAGES[name].model_json_schema(), as_json or schema)
        if name in slots() and not (name in STAGES and (as_json or schema)):
            _show_slot(name, as_json)
    elif name in device_table():
        _show_fields(device_table()[name].model_dump(mode="json"), as_json)
    else:
        _show_plugin(name, schema, as_json)


def _show_plugin(name: str, schema: bool, as_json: bool) -> None:
    from stackloom.core.loading import load_config

    with registry() as opened:
        if "." not in name:
            known = [*opened.ids(), *(plugin.partition(".")[0] for plugin in opened.ids())]
            raise ConfigError(
                f"no plugin, slot, stage or device {name!r}",
                fix=did_you_mean(name, set(known), otherwise="see `stackloom list`"),
            )
        record = opened.get(name)
        evidence = opened.evidence.rows(plugin=name)
    if schema:
        _show_schema(load_config(record).model_json_schema(), as_json)
        return
    data = record.manifest.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data |= {
        "distribution": record.distribution,
        "version": record.version,
        "folder": str(record.folder),
        "evidence": [row.model_dump(mode="json") for row in evidence],
    }
    if as_json:
        print_json(data)
        return
    claims = data.pop("claims", [])
    evidence_rows = data.pop("evidence")
    _show_fields(data, False)
    if claims:
        latest = {row["claim"]: row for row in reversed(evidence_rows)}
        print_table(
            ("claim", "where", "paper", "ours", "verdict", "date"),
            [
                [
                    claim["name"],
                    claim["where"],
                    str(claim.get("paper", "-")),
                    *(_evidence_cells(latest.get(claim["name"]))),
                ]
                for claim in claims
            ],
            "Claims",
        )


def _evidence_cells(row: dict[str, Any] | None) -> list[str]:
    return [str(row["ours"]), row["verdict"], row["date"][:10]] if row else ["-", "no evidence", "-"]


def _show_slot(name: str, as_json: bool) -> None:
    from stackloom.core.slots import slots

    slot = slots()[name]
    with registry() as opened:
        plugins = [row.id for row in opened.rows(slot=name)]
    methods = {
        key: (value.__doc__ or "").strip().partition("\n")[0]
        for key, value in vars(slot.protocol).items()
        if callable(value) and value.__doc__ and not key.startswith("_proto")
    }
    _show_fields(
        {
            "slot": slot.api,
            "summary": slot.summary,
            "sits in": list(slot.sits_in),
            "features": slot.features,
            "contract": (slot.protocol.__doc__ or "").strip(),
            "methods": methods,
            "plugins": plugins,
        },
        as_json,
    )


def _show_schema(schema: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(schema)
        return
    rows = []
    for name, field in schema["properties"].items():
        kind = field.get("type") or (
            "|".join(
                str(item.get("type") or item.get("$ref", "").rpartition("/")[2]) for item in field.get("anyOf", ())
            )
            or "choice"
        )
        kind = (
            "|".join(map(str, field["enum"]))
            if "enum" in field
            else f"{field['slot']} plugin"
            if "slot" in field
            else kind
        )
        default = "required" if name in schema.get("required", ()) else json.dumps(field.get("default"))
        rows.append([name, kind, default, field.get("unit", ""), field.get("source", ""), field.get("description", "")])
    print_table(("option", "type", "default", "unit", "source", "meaning"), rows, schema.get("title", ""))


def _show_fields(data: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(data)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in data.items():
        table.add_row(key, _text(value))
    console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_text(item)}" for key, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def compare(
    plugins: list[str] = typer.Argument(help="Two or more plugin ids of one slot."),
    as_json: bool = _JSON,
) -> None:
    """Put plugins side by side: what they need, can do and have proved."""
    if len(plugins) < 2:
        raise ConfigError("nothing to compare", fix="name two or more plugins")
    with registry() as opened:
        records = [opened.get(plugin) for plugin in plugins]
        evidence = {plugin: opened.evidence.rows(plugin=plugin) for plugin in plugins}
    columns = {
        record.id: {
            "summary": record.manifest.summary,
            "version": record.version,
            "lifecycle": record.manifest.lifecycle,
            "paper": record.manifest.paper.page or record.manifest.paper.title if record.manifest.paper else "",
            "determinism": record.manifest.determinism,
            "dtypes": list(record.manifest.can.dtypes),
            "devices": list(record.manifest.can.devices),
            "features": list(record.manifest.can.features),
            "needs": dict(record.manifest.needs),
            "claims": len(record.manifest.claims),
            "evidence": {row.claim: row.verdict for row in reversed(evidence[record.id])},
        }
        for record in records
    }
    if as_json:
        print_json(columns)
        return
    fields = list(next(iter(columns.values())))
    print_table(("", *columns), [[field, *(_text(column[field]) for column in columns.values())] for field in fields])
