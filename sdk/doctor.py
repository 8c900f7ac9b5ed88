"""`stackloom doctor`: what works here, from metadata alone."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from stackloom.core.devices import find_device
from stackloom.core.plan import gib
from stackloom.core.rows import CheckRow
from stackloom.probe import probe
from stackloom.registry import Registry
from stackloom.registry.discovery import unmet


def _row(name: str, passed: bool, expected: str, actual: str, fix: str = "", *, required: bool = False) -> CheckRow:
    return CheckRow(
        id=name, required=required, passed=passed, expected=expected, actual=actual, fix="" if passed else fix
    )


def doctor(registry: Registry) -> list[CheckRow]:
    """Report on Python, the device, the extras, the registry and every plugin; runs no plugin code."""
    python = platform.python_version()
    device = find_device("auto")
    rows = [
        _row("python", sys.version_info >= (3, 11), "3.11 or newer", python, "install a newer Python", required=True),
        _row("device", True, "a device of the table", f"{device.title}, {gib(device.memory_bytes)}"),
        *_extras(),
        _row(
            "registry",
            not registry.notices,
            "writable",
            "; ".join(registry.notices) or "writable",
            "see the notice",
            required=False,
        ),
    ]
    for plugin in sorted(registry.ids()):
        record = registry.get(plugin)
        missing = unmet(record.manifest)
        rows.append(
            _row(
                plugin,
                not missing,
                "every requirement installed",
                "; ".join(missing) or f"{record.distribution} {record.version}",
                "install what is missing",
            )
        )
    rows += [
        _row(
            problem.source,
            False,
            "a plugin that can be used",
            problem.message,
            f"tell the author of {problem.distribution}, or uninstall it",
            required=True,
        )
        for problem in registry.problems()
    ]
    return rows


def _extras() -> list[CheckRow]:
    """One row per extra of our own distribution: what of it is installed."""
    rows = []
    for extra in ("train", "ray", "serve", "envs"):
        wanted = [item for item in map(Requirement, requires("stackloom") or ()) if _belongs(item, extra)]
        lacking = [f"{item.name}{item.specifier}" for item in wanted if not _satisfied(item)]
        actual = f"missing {', '.join(lacking)}" if lacking else "installed"
        expected = ", ".join(item.name for item in wanted)
        rows.append(_row(f"extra {extra}", not lacking, expected, actual, f"pip install 'stackloom[{extra}]'"))
    return rows


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def _satisfied(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def import_plugin(registry: Registry, plugin: str, timeout: float) -> list[CheckRow]:
    """Import a plugin's config and component in a subprocess and report what happened."""
    record = registry.get(plugin)
    rows = []
    for part, target in (("config", record.manifest.config), ("component", record.manifest.component)):
        module, _, name = target.partition(":")
        found = probe(f"{record.package}.{module}", name, timeout=timeout)
        what = (
            f"{record.distribution} {record.version}: {found.error}"
            if found.error
            else f"imported in {found.seconds:.2f} s"
        )
        rows.append(
            _row(
                f"{plugin}: {part}",
                not found.error,
                f"{target} imports",
                what,
                found.traceback.strip() or f"tell the author of {record.distribution}",
                required=True,
            )
        )
    return rows
