"""An archive of ships, a search tool, and questions that need many of its entries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from stackloom.core.chat import Message, Tool, ToolCall, tool_prompt
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.plugins.environment.search_world.config import SearchWorldConfig

SEARCH = Tool(
    "search",
    "Search the archive by the name of a ship; returns the entries that are nearest to it.",
    {
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 200}},
        "required": ["query"],
        "additionalProperties": False,
    },
)
INSTRUCTION = "Answer from the archive. End with: The total is <number>.\n"
# fmt: off
FIRST = ("Amber", "Arctic", "Baltic", "Bold", "Bright", "Calm", "Coral", "Crimson", "Eastern", "Emerald", "Far",
         "Gentle", "Golden", "Grand", "Grey", "Hidden", "Iron", "Lone", "Misty", "Noble", "Northern", "Pale", "Proud",
         "Quiet", "Royal", "Silent", "Silver", "Southern", "Steady", "Swift", "Western", "Winter")
SECOND = ("Albatross", "Anchor", "Aurora", "Beacon", "Breeze", "Castle", "Comet", "Compass", "Crane", "Dawn", "Falcon",
          "Gull", "Harbour", "Heron", "Lantern", "Osprey", "Pearl", "Petrel", "Pilgrim", "Raven", "Spirit", "Star",
          "Swan", "Tern", "Trader", "Venture", "Wanderer", "Wave")
LINES: dict[Split, tuple[str, ...]] = {
    "train": ("Aldrich", "Barlow", "Corvin", "Dacre", "Everly", "Farrow", "Garnet", "Harlan", "Ingram", "Jessop"),
    "held-out": ("Kestrel", "Lomax", "Marlow", "Norwood", "Ogilvy", "Penrose", "Quill", "Radley", "Selby", "Thorne"),
}
REMARKS = ("Her logbook for that year survives in part, with water stains on most of its pages.",
           "The harbour master noted that she arrived late after waiting for the tide.",
           "A photograph of the crew hangs in the reading room on the upper floor.",
           "Two letters of her second mate are kept in the same box and mention bad weather.",
           "Repairs to the rudder are mentioned in a bill that was never paid.",
           "The insurance papers give another owner, which seems to be a clerk's mistake.",
           "Her bell was sold at auction and its whereabouts are not known today.",
           "A passenger's diary describes the long wait at the lock in some detail.")
# fmt: on
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?![\w])")


class SearchWorld:
    """Questions of the kind "How many crates did these ships of this line carry together?".

    Ships of other lines have the same names, so a search finds several entries of which one counts; nearly all of what
    the agent reads is of no use. Task `i` of a split is a pure function of the options and `i`; the splits share no
    line.

    Args:
        config: the plugin's options.

    Example:
        >>> world = SearchWorld(SearchWorldConfig(fewest=2, most=2))
        >>> len(world.demonstration(world.tasks("train", 1)[0]))
        5
    """

    def __init__(self, config: SearchWorldConfig) -> None:
        self.config = config
        self._system = Message("system", INSTRUCTION + tool_prompt([SEARCH], compact=True))

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split.

        Raises:
            ConfigError: no such split.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where="environment.search-world", fix="train or held-out")
        return [self._task(split, index) for index in range(count)]

    def start(self, task: Task) -> SearchEpisode:
        """Begin an attempt."""
        return SearchEpisode(task)

    def demonstration(self, task: Task) -> list[Message]:
        """Return one search per ship, and the total."""
        episode, messages = self.start(task), []
        for ship in task.secret["ships"]:
            call = ToolCall(SEARCH.name, {"query": ship}, "call_0")
            messages += [
                Message("assistant", "", (call,)),
                Message("tool", episode.call(call), tool_call_id=call.id, name=call.name),
            ]
        return [*messages, Message("assistant", f"The total is {task.secret['total']}.")]

    def _task(self, split: Split, index: int) -> Task:
        config = self.config
        rng = Random(f"search-world/{config.seed}/{split}/{index}")
        count = rng.randint(config.fewest, config.most)
        names = [f"{one} {two}" for one in FIRST for two in SECOND]
        ships = rng.sample(names, count + 8)
        lines = rng.sample(LINES[split], min(config.lines, len(LINES[split])))
        year = rng.randint(1871, 1899)
        entries: dict[str, list[str]] = {}
        total = 0
        for ship in ships:
            found = []
            for place, line in enumerate(lines):
                crates = rng.randint(12, 989)
                if place == 0 and ship in ships[:count]:
                    total += crates
                remarks = " ".join(rng.sample(REMARKS, min(config.remarks, len(REMARKS))))
                found.append(f"{ship}, {line} Line, {year}: {crates} crates. {remarks}".strip())
            rng.shuffle(found)
            entries[ship] = found
        listed = ", ".join(ships[:count])
        question = f"In {year}, how many crates did these ships of the {lines[0]} Line carry together: {listed}?"
        return Task(
            id=f"search-world/{config.seed}/{split}/{index}",
            kind=f"{10 * (count // 10)}+ entries",
            messages=(self._system, Message("user", question)),
            tools=(SEARCH,),
            secret={"ships": ships[:count], "line": lines[0], "total": total, "entries": entries},
        )


class SearchEpisode:
    """One attempt. The archive does not change.

    Args:
        task: what is attempted.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def call(self, call: ToolCall) -> str:
        """Search.

        Raises:
            ToolError: another tool, or arguments other than one text `query`.
        """
        if call.name != SEARCH.name:
            raise ToolError(f"there is no tool {call.name[:40]!r}; call {SEARCH.name}")
        query = call.arguments.get("query")
        if set(call.arguments) != {"query"} or not isinstance(query, str) or not query.strip():
            raise ToolError('search takes one text: {"query": "Silver Heron"}')
        entries = self._task.secret["entries"]
        wanted = query.strip().casefold()
        exact = next((found for ship, found in entries.items() if ship.casefold() == wanted), None)
        if exact is not None:
            return "\n".join(exact)
        words = set(wanted.split())
        near = sorted(entries, key=lambda ship: (-len(words & set(ship.casefold().split())), ship))
        return "\n".join(["No ship of this name. The nearest entries:", *entries[near[0]]])

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """1 if the final message's last number is the total, otherwise 0."""
        found = self.answer(transcript)
        if found is None:
            return Reward(0.0, reason="no final message with a number")
        total = self._task.secret["total"]
        return Reward(float(found == str(total)), reason=f"answered {found}, the total is {total}")

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the last whole number of the final message."""
        if not transcript or transcript[-1].role != "assistant" or transcript[-1].tool_calls:
            return None
        found = NUMBER.findall(transcript[-1].content)
        return str(int(found[-1].replace(",", ""))) if found and len(found[-1]) < 16 else None
