"""stackloom: compose agentic-model stacks from research plugins.

Example:
    >>> import stackloom as sl
    >>> stack = sl.Stack(
    ...     "first",
    ...     model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
    ...     stages=[sl.train(optimizer=sl.use("optimizer.adamw"), data=sl.use("data.jsonl", path="a.jsonl"), steps=10)],
    ... )
    >>> plan = stack.plan(device="h100")

Nothing is imported until it is used: `import stackloom` needs the standard library alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackloom.core.errors import ArtifactError, ConfigError, EngineError, FitError, PluginError, StackloomError
    from stackloom.core.ref import Ref, use
    from stackloom.stack import Plan, Stack, evaluate, export, quantize, stage, train, transform
    from stackloom.thinking import think

_HOMES = {
    "stackloom.core.errors": (
        "ArtifactError",
        "ConfigError",
        "EngineError",
        "FitError",
        "PluginError",
        "StackloomError",
        "evaluate",
        "export",
        "quantize",
    ),
    "stackloom.core.ref": ("Ref", "use"),
    "stackloom.thinking": ("think",),
    "stackloom.stack": ("Plan", "Stack", "evaluate", "export", "quantize", "stage", "train", "transform"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ArtifactError",
    "ConfigError",
    "EngineError",
    "FitError",
    "Plan",
    "PluginError",
    "Ref",
    "Stack",
    "StackloomError",
    "evaluate",
    "export",
    "quantize",
    "stage",
    "think",
    "train",
    "transform",
    "use",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'stackloom' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
