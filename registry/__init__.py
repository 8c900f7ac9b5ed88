"""Discovery, catalogue, evidence and the run ledger.

Nothing is imported until it is asked for: `open_registry` brings SQLite and, for a write or for PostgreSQL, SQLAlchemy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackloom.registry.catalogue import Registry, open_registry
    from stackloom.registry.discovery import Problem, discover, unmet
    from stackloom.registry.errors import StorageError

__all__ = ["Problem", "Registry", "StorageError", "discover", "open_registry", "unmet"]

_HOMES = {
    "Registry": "catalogue",
    "open_registry": "catalogue",
    "Problem": "discovery",
    "discover": "discovery",
    "unmet": "discovery",
    "StorageError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
