"""A base for the plugin's contract tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def sample(folder: Path) -> dict[str, Any]:
    """Return options that put the plugin on round to nearest."""
    return {"base": {"use": "quantizer.rtn", "scheme": "w4a8", "group_size": 16}}
