"""A scripted agent for `environment.search-world`: what it knows is what stands in its context, and nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from random import Random

from stackloom.core.chat import Message, ToolCall
from stackloom.core.generation import ChatRequest, ContextFull, Delta, Reply

ENTRY = re.compile(r"^(?P<ship>[A-Z]\w+ [A-Z]\w+), (?P<line>\w+) Line, \d{4}: (?P<crates>\d+) crates\.", re.MULTILINE)
NOTE = re.compile(r"^- (?P<ship>[A-Z]\w+ [A-Z]\w+): (?P<crates>\d+|not in the archive)$", re.MULTILINE)
ASKED = re.compile(r"ships of the (?P<line>\w+) Line carry together: (?P<ships>.+)\?$")


@dataclass
class Searcher:
    """Fulfils `core.generation.ChatModel`. It searches ships that it has not found, and answers when it has them all.

    It is a model of an agent, not a language model: its mistakes are drawn. A ship that its notes call "not in the
    archive" is one it does not look for again, so it goes on looking elsewhere until its turns end.

    Args:
        context: words that prompt and reply share; a longer prompt is refused as a model's server does.
        stray: probability that a turn goes to a search which finds nothing of use.
        slip: probability that a note about a ship wrongly says that it is not in the archive.
        seed: of its draws.
    """

    context: int
    stray: float = 0.25
    slip: float = 0.0
    seed: int = 0
    top_logprobs: int = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Reply]:
        """Yield one reply.

        Raises:
            ContextFull: the prompt is longer than the context.
        """
        prompt = sum(map(words, request.messages))
        if prompt >= self.context:
            raise ContextFull(f"the prompt has {prompt} words, the context {self.context}")
        message = self._say(request.messages, Random(f"{self.seed}/{request.key}"))
        yield Reply(message, tokens=words(message), prompt_tokens=prompt)

    def _say(self, messages: Sequence[Message], rng: Random) -> Message:
        line, ships = asked(messages)
        found, gone = known(messages, line, ships)
        if (
            messages[-1].role == "user"
            and not ASKED.search(messages[-1].content)
            and not NOTE.search(messages[-1].content)
        ):
            return Message("assistant", self._notes(found, gone, rng))
        missing = [ship for ship in ships if ship not in found]
        if not missing:
            return Message("assistant", f"The total is {sum(found.values())}.")
        open_ones = [ship for ship in missing if ship not in gone]
        if not open_ones or rng.random() < self.stray:
            query = f"{rng.choice(ships).split()[0]} {rng.choice(('manifest', 'ledger', 'cargo', 'register'))}"
        else:
            query = rng.choice(open_ones)
        return Message("assistant", "", (ToolCall("search", {"query": query}, "call_0"),))

    def _notes(self, found: dict[str, int], gone: set[str], rng: Random) -> str:
        lines = [
            f"- {ship}: {'not in the archive' if rng.random() < self.slip else crates}"
            for ship, crates in found.items()
        ]
        return "\n".join([*lines, *(f"- {ship}: not in the archive" for ship in sorted(gone))]) or "- nothing yet"


def words(message: Message) -> int:
    """Return the words of a message, those of its calls included: the tokens of this agent."""
    return len(message.content.split()) + sum(len(str(call.arguments).split()) + 1 for call in message.tool_calls)


def asked(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """Return the line and the ships of the question."""
    match = next(match for message in messages if (match := ASKED.search(message.content)))
    return match["line"], match["ships"].split(", ")


def known(messages: Sequence[Message], line: str, ships: Sequence[str]) -> tuple[dict[str, int], set[str]]:
    """Return crates by ship, and the ships that are given up, as far as the context says so; entries beat notes."""
    found: dict[str, int] = {}
    gone: set[str] = set()
    for message in messages:
        if message.role == "tool":
            for match in ENTRY.finditer(message.content):
                if match["line"] == line and match["ship"] in ships:
                    found[match["ship"]] = int(match["crates"])
            continue
        for match in NOTE.finditer(message.content):
            if match["crates"].isdigit():
                found[match["ship"]] = int(match["crates"])
            else:
                gone.add(match["ship"])
    return found, gone - found.keys()
