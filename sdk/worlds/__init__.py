"""Looking at tool worlds: their graphs, their transcripts, and a seat in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stackloom.core.errors import ConfigError

if TYPE_CHECKING:
    from stackloom.core.catalogue import Catalogue
    from stackloom.core.slots.environment import Environment


def build_environment(catalogue: Catalogue, plugin: str, options: Mapping[str, Any]) -> Environment:
    """Build an installed environment.

    Raises:
        ConfigError: it is not installed, is no environment, or refuses its options.
    """
    from stackloom.repro.context import resolve

    if not catalogue.get(plugin).manifest.slot_api.startswith("environment/"):
        raise ConfigError(f"{plugin} is no environment", where=plugin, fix="stackloom list --slot environment")
    made: Environment = resolve(catalogue, plugin, options).build()
    return made
