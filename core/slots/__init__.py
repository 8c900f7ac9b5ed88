"""The slots of a stack: one module each, found by walking this folder, so that a new slot edits no other file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from stackloom.core.slot import Slot


@cache
def slots() -> dict[str, Slot]:
    """All slots by name. Each module of this package defines one as `SLOT`."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.SLOT.name: module.SLOT for module in modules}
