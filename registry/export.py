"""The whole catalogue as one static JSON file, for the site and for other tools."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from stackloom.registry.atomic import write_atomic

if TYPE_CHECKING:
    from stackloom.registry.catalogue import Registry

FORMAT = "stackloom-registry/1"


def export(registry: Registry, path: Path) -> Path:
    """Write `registry` to `path` without machine paths or times of writing, so that equal content gives equal bytes."""
    document = {
        "format": FORMAT,
        "plugins": [_plugin(registry, plugin) for plugin in registry.ids()],
        "slots": [vars(slot) for slot in registry.slots()],
        "claims": [{"plugin": plugin, **claim.model_dump(mode="json")} for plugin, claim in registry.claims()],
        "evidence": [row.model_dump(mode="json") for row in registry.evidence.rows()],
        "problems": sorted(
            (
                {
                    **vars(problem),
                    "source": _relative(problem.source),
                    "message": _hide(problem.message, problem.source),
                }
                for problem in registry.problems()
            ),
            key=lambda row: sorted(row.items()),
        ),
    }
    write_atomic(path, (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return path


def _plugin(registry: Registry, plugin: str) -> dict[str, Any]:
    record = registry.get(plugin)
    return {
        "id": plugin,
        "slot": record.manifest.slot,
        "version": record.manifest.version or record.version,
        "distribution": record.distribution,
        "distribution_version": record.version,
        "package": record.package,
        "manifest": record.manifest.model_dump(mode="json", by_alias=True),
    }


def _relative(source: str) -> str:
    """The last folders of a file's path: enough to find it, nothing about this machine."""
    return "/".join(PurePath(source).parts[-3:]) if PurePath(source).is_absolute() else source


def _hide(message: str, source: str) -> str:
    return message.replace(source, _relative(source))
