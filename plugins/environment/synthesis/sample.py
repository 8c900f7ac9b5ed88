"""A small file of cached answers, for the plugin's contract tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def sample(folder: Path) -> dict[str, Any]:
    """Write cached answers to sums into `folder`, a quarter of them right, and return the options that read them."""
    path = folder / "cached.jsonl"
    rows = []
    for number in range(12):
        right = 3 * number + 41
        said = [right + (0 if place % 4 == 0 else 1 + place % 3) for place in range(8)]
        answers = [f"I add them up: the answer is {value}." for value in said]
        rows.append({"question": f"What is {number + 41} + {2 * number}?", "answer": str(right), "answers": answers})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path), "fewest": 4, "most": 8}
