"""Finds the ops: every folder of this package that holds a ``reference.py`` is one. A new op edits no existing file."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contract import Op
    from .selection import Selection


def op_names(package: str = __package__) -> tuple[str, ...]:
    """The names of all ops, sorted, found without importing any of them (nor torch)."""
    root = importlib.import_module(package)
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules(root.__path__)
            if module.ispkg and any((Path(path) / module.name / "reference.py").is_file() for path in root.__path__)
        )
    )


def load_op(name: str, package: str = __package__) -> Op:
    """Import one op.

    Raises:
        KeyError: no op has this name; the message lists those that exist.
        AttributeError: its folder exposes no ``OP``.
    """
    names = op_names(package)
    if name not in names:
        raise KeyError(f"no op {name!r}; there are {', '.join(names)}")
    module = importlib.import_module(f"{package}.{name}")
    if not hasattr(module, "OP"):
        raise AttributeError(f"{module.__name__} exposes no OP: {module.__file__}")
    return module.OP


def selections() -> dict[Selection, int]:
    """What ``auto`` chose in this process, over all ops imported so far, and the calls that each choice served."""
    loaded = (sys.modules.get(f"{__package__}.{name}") for name in op_names())
    return {
        record: calls
        for module in loaded
        if module is not None
        for record, calls in module.OP.dispatch.selections().items()
    }
