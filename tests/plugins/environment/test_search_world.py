"""`environment.search-world`: the slot's laws, and what makes it long."""

from typing import ClassVar

import pytest

from stackloom.core.chat import Message, ToolCall
from stackloom.core.slots.environment import ToolError
from stackloom.testing import EnvironmentContract, build


class TestSmall(EnvironmentContract):
    plugin = "environment.search-world"
    options: ClassVar = {"fewest": 1, "most": 3}


class TestLong(EnvironmentContract):
    plugin = "environment.search-world"
    sample = 4


def test_splits_share_no_line_and_seeds_share_no_task():
    lines = {
        split: {task.secret["line"] for task in build("environment.search-world").tasks(split, 50)}
        for split in ("train", "held-out")
    }
    assert lines["train"]
    assert not lines["train"] & lines["held-out"]
    other = build("environment.search-world", seed=1).tasks("train", 5)
    assert not {task.messages for task in other} & {
        task.messages for task in build("environment.search-world").tasks("train", 5)
    }


def test_an_answer_needs_as_many_entries_as_was_asked_for():
    for task in build("environment.search-world", fewest=12, most=14).tasks("train", 20):
        assert 12 <= len(task.secret["ships"]) <= 14


def test_a_search_finds_one_entry_that_counts_among_others():
    world = build("environment.search-world", lines=3)
    task = world.tasks("train", 1)[0]
    total = 0
    for ship in task.secret["ships"]:
        entries = world.start(task).call(ToolCall("search", {"query": f" {ship.upper()} "}, "c")).splitlines()
        assert len(entries) == 3
        own = [entry for entry in entries if f"{task.secret['line']} Line" in entry]
        assert len(own) == 1
        total += int(own[0].partition(": ")[2].split()[0])
    assert total == task.secret["total"]


def test_an_unknown_name_finds_the_nearest_and_says_so():
    world = build("environment.search-world")
    task = world.tasks("train", 1)[0]
    ship = task.secret["ships"][0]
    found = world.start(task).call(ToolCall("search", {"query": f"{ship} manifest"}, "c"))
    assert found.startswith("No ship of this name.")
    assert ship in found


@pytest.mark.parametrize("arguments", [{}, {"query": ""}, {"query": 3}, {"query": "x", "page": 2}])
def test_bad_searches_are_told(arguments):
    world = build("environment.search-world")
    with pytest.raises(ToolError, match="takes one text"):
        world.start(world.tasks("train", 1)[0]).call(ToolCall("search", arguments, "c"))


def test_the_last_number_is_the_answer():
    world = build("environment.search-world", fewest=2, most=2)
    task = world.tasks("train", 1)[0]
    total = task.secret["total"]
    for text, value in ((f"The total is {total:,}.", 1.0), (f"{total} or {total + 1}", 0.0), ("Many.", 0.0)):
        assert world.start(task).reward([Message("assistant", text)]).value == value
