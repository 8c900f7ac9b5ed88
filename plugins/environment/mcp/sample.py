"""Tasks over a world of ours, served by our own MCP server, for the plugin's contract tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def sample(folder: Path) -> dict[str, Any]:
    """Write tasks into `folder` and return the options that serve a retail world for each attempt."""
    path = folder / "tasks.jsonl"
    rows = [{"id": f"count-{n}", "prompt": f"Say the number {n}.", "answer": str(n)} for n in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "stackloom", "env", "mcp", "retail", "--seed", "5", "--tools", "6", "--no-judged"]
    return {"command": command, "tasks": str(path), "held_out": 0.5}
