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

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> find_domain("retail").title
        'An online shop'
    """
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
