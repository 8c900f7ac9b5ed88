"""The smallest model that the plugin builds, for its contract tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def sample(folder: Path) -> dict[str, Any]:
    """Return options of a hybrid of three layers; nothing is written."""
    return {
        "attention": {"use": "attention.kda"},
        "layers": 3,
        "hidden": 32,
        "heads": 2,
        "intermediate": 48,
        "full_every": 3,
        "max_positions": 128,
    }
