"""The smallest file that the plugin reads, for its contract tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ANSWER = {"role": "assistant", "content": "Hello"}
CONVERSATIONS = (
    [{"role": "user", "content": "Hi"}, ANSWER],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Good day"}, ANSWER],
)


def sample(folder: Path) -> dict[str, Any]:
    """Write two conversations into `folder` and return the options that read them."""
    path = folder / "sample.jsonl"
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in CONVERSATIONS), encoding="utf-8")
    return {"path": str(path)}
