"""The template domains: one folder each, found by looking. A new folder needs no other change."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from stackloom.core.errors import ConfigError, did_you_mean
from stackloom.environments.domain import Domain


def domain_names() -> tuple[str, ...]:
    """Return the names of all domains; nothing is imported."""
    return tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/words.toml")))


@cache
def find_domain(name: str) -> Domain:
    """Return a domain. It is built once: domains do not change.

    Args:
        name: of a template domain, or the path of a written one's JSON file (see `stackloom env write`).

    Raises:
        ConfigError: there is none of this name.
        SandboxRefused: the rules of a written domain cannot be contained on this machine.

    Example:
        >>> find_domain("retail").title
        'An online shop'
    """
    if name.endswith(".json"):
        return _written(Path(name))
    if name not in domain_names():
        raise ConfigError(
            f"there is no domain {name!r}",
            where="domain",
            fix=did_you_mean(name, domain_names(), otherwise=f"one of {', '.join(domain_names())}"),
        )
    module = importlib.import_module(f"{__name__}.{name}.{name}")
    found = module.domain()
    assert isinstance(found, Domain)
    return found


def _written(path: Path) -> Domain:
    from stackloom.environments.sandbox import open_sandbox
    from stackloom.environments.writing.sheet import read_sheet

    return read_sheet(path).domain(open_sandbox())
