"""The composer's committed grid says what the planner says today."""

from __future__ import annotations

import json
import random
from pathlib import Path

from stackloom.pairs import compose
from stackloom.registry import open_registry
from stackloom.site.grid import KINDS, ask

ROOT = Path(__file__).parents[2]


def test_a_sample_of_the_grid_is_what_the_planner_says(tmp_path: Path) -> None:
    grid = json.loads((ROOT / "docs" / "assets" / "grid.json").read_text())
    draw = random.Random(0)
    with open_registry(home=tmp_path) as registry:
        for shape in grid["shapes"]:
            found = grid["fits"][shape]["cuda"]
            for names in draw.sample(sorted(found), k=6):
                picks = {plugin.partition(".")[0]: plugin for plugin in names.split()}
                options = grid["options"] | {"model.hf": {"checkpoint": shape}}
                data = compose(picks, options, {"model.hf": grid["model_slots"]}, grid["sizes"])
                reason, size = ask(registry, data, KINDS["cuda"])
                index, kept = found[names]
                assert (grid["reasons"][index] if index >= 0 else "", kept) == (reason, size), f"{names} on {shape}"


def test_what_only_a_user_can_give_is_blocked_with_the_command_that_lists_it() -> None:
    grid = json.loads((ROOT / "docs" / "assets" / "grid.json").read_text())
    assert grid["blocked"]["data.jsonl"].startswith("needs path")
    assert "stackloom show data.jsonl --schema" in grid["blocked"]["data.jsonl"]
    assert not any("data.jsonl" in names.split() for names in grid["fits"][grid["shapes"][0]]["cuda"])
