"""The factory: from a domain and a seed to an environment of one task that can be solved, checked and rebuilt.

Growth follows section 2.3 of `papers/longcat_thinking_2601.md`: a golden chain first, then tools whose dependencies
hold, and after every growth a replay that must give the same bytes (the conservative-extension rule).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from string import Formatter
from threading import Lock
from typing import Any, Literal, TypeAlias

from stackloom.core.errors import ConfigError, EngineError
from stackloom.core.slots.environment import ToolError
from stackloom.environments.chains import Chains, Instantiate, Known, Step, Wish, bind, bind_edit, stands_out
from stackloom.environments.domain import Domain
from stackloom.environments.entities import Row
from stackloom.environments.graph import Graph, closure, stranded
from stackloom.environments.rows import Rows
from stackloom.environments.statements import Statement, choices_of, holds, states
from stackloom.environments.tools import Outcome, WorldTool, call
from stackloom.environments.wording import Request, report, request
from stackloom.environments.world import Contents, World, commute

Growth: TypeAlias = Literal["checked", "random", "random-own", "random-fitting"]
Half: TypeAlias = Literal["", "train", "held-out"]
Delta: TypeAlias = tuple[tuple[str, str, Row | None, Row | None], ...]
MAX_BUILDS = 50
MAX_CHAINS = 12  # drawn over the same rows before others are


@dataclass(frozen=True)
class Recipe:
    """How environments are made; with a seed it decides every byte.

    Attributes:
        tools: how many tools the agent sees, 3 to 60.
        low, high: calls of the golden chain; 0 lets `tools` decide (4 to 8, fewer for fewer tools).
        growth: "checked" is the page's. The others add tools without asking what they need, for comparison, and patch
            rows so that these can be called: "random" anybody's, "random-own" the user's, "random-fitting" anybody's
            but only where no row fits as it is.
        tau, complexity, attempts: of the page's decision whether another golden chain is added: its threshold, the
            complexity c* at which it is even, and the most attempts at finding one. [inferred]
        breadth: most tools that one chain's neighbourhood adds. [inferred]
        withheld: probability that a detail is told only when the agent asks for it.
        half: which persons may be users; the two halves share none.
    """

    tools: int = 24
    low: int = 0
    high: int = 0
    growth: Growth = "checked"
    tau: float = 0.5
    complexity: float = 40.0
    attempts: int = 40
    breadth: int = 10
    withheld: float = 0.0
    half: Half = ""

    def __post_init__(self) -> None:
        if not 3 <= self.tools <= 60:
            raise ConfigError(f"tools is {self.tools}", where="tools", fix="3 to 60")
        if self.low > self.high or self.low < 0 or self.high > 12:
            raise ConfigError(f"calls from {self.low} to {self.high}", where="calls", fix="0 <= low <= high <= 12")

    @cached_property
    def calls(self) -> tuple[int, int]:
        """Fewest and most calls of the golden chain."""
        if self.high:
            return max(1, self.low), self.high
        return min(4, self.tools // 2 + 1), min(8, max(3, self.tools))


@dataclass(frozen=True)
class BuiltTask:
    """One environment with its task. Equal domains, recipes and seeds give equal ones, byte by byte.

    Attributes:
        domain, recipe, seed: what it was built from.
        tools: what the agent may call, in the order in which it sees them.
        rows: the world before the attempt.
        person: id of the user.
        wishes: what the user wants, in order.
        chains: every golden chain of the environment; the first is the task's.
        request: how the user says it.
        statements: what the final answer must state.
        recorded: what each chain answered and changed when it was drawn, before tools were added.
        attempts: how many draws it took to find the golden chains after the first, None for none that was found.
    """

    domain: Domain
    recipe: Recipe
    seed: str
    tools: Mapping[str, WorldTool]
    rows: Mapping[str, Sequence[Row]]
    person: str
    wishes: tuple[Wish, ...]
    chains: tuple[tuple[Step, ...], ...]
    request: Request
    statements: tuple[Statement, ...]
    recorded: tuple[tuple[tuple[str, ...], Delta], ...]
    attempts: tuple[int | None, ...] = ()

    @property
    def golden(self) -> tuple[Step, ...]:
        """The task's golden chain."""
        return self.chains[0]

    @cached_property
    def target(self) -> Contents:
        """The world after the golden chain."""
        found = {table: {row["id"]: row for row in rows} for table, rows in self.rows.items()}
        for table, row_id, _, after in self.recorded[0][1]:
            if after is None:
                del found[table][row_id]
            else:
                found[table][row_id] = after
        return found

    @cached_property
    def known(self) -> tuple[Known, ...]:
        """Everything that the person knows about the task."""
        return self.request.known

    @cached_property
    def digest(self) -> str:
        """A hash of everything that decides the task: tools, rows, request, target."""
        shown = [tool.shown.to_openai() for tool in self.tools.values()]
        parts = (shown, self.rows, self.chains, self.request, self.statements, self.recorded)
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def world(self, url: str = "sqlite://") -> World:
        """Return a new world as it is before the attempt."""
        return make_world(self.domain, self.rows, self.seed, url)


def make_world(domain: Domain, rows: Mapping[str, Sequence[Row]], seed: str, url: str = "sqlite://") -> World:
    """Return a world that holds these rows."""
    world = World(domain.schema, salt=seed, url=url)
    world.load(rows)
    return world


@dataclass(frozen=True)
class Replay:
    """What a chain did.

    Attributes:
        outcomes: of each call.
        delta: rows that changed, before and after, by table and id; None where there is no row.
    """

    outcomes: tuple[Outcome, ...]
    delta: Delta

    @property
    def texts(self) -> tuple[str, ...]:
        """What the agent read, per call."""
        return tuple(outcome.text for outcome in self.outcomes)


def replay(domain: Domain, world: World, chain: Sequence[Step]) -> Replay:
    """Run a chain in a world.

    Raises:
        ToolError: a call was refused.
    """
    outcomes = tuple(run_step(domain, world, step) for step in chain)
    before: dict[tuple[str, str], Row | None] = {}
    for outcome in outcomes:
        before = outcome.view.before | before
    delta = []
    for table, row_id in sorted(before):
        after = next(iter(world.rows(table, {"id": row_id})), None)
        if after != before[table, row_id]:
            delta.append((table, row_id, before[table, row_id], after))
    return Replay(outcomes, tuple(delta))


def run_step(domain: Domain, world: World, step: Step) -> Outcome:
    """Make one call of a chain."""
    tool = domain.tools[step.tool]
    return call(world, tool, tool.write(step.arguments), domain.today)


def chain_of(wishes: Sequence[Wish]) -> tuple[Step, ...]:
    """Return the calls of all wishes in order."""
    return tuple(step for wish in wishes for step in wish.steps)


def replays(built: BuiltTask) -> bool:
    """Whether every golden chain still answers and changes what it did when it was drawn."""
    for chain, (texts, delta) in zip(built.chains, built.recorded, strict=True):
        world = built.world()
        try:
            again = replay(built.domain, world, chain)
        except ToolError:
            return False
        finally:
            world.close()
        if (again.texts, again.delta) != (texts, delta):
            return False
    return True


class Factory:
    """Builds environments of one domain.

    Args:
        domain: the template.
        recipe: how.

    Example:
        >>> built = Factory(domain("retail"), Recipe(tools=24)).build("7")
        >>> len(built.tools), built.digest == Factory(domain("retail"), Recipe(tools=24)).build("7").digest
        (24, True)
    """

    def __init__(self, domain: Domain, recipe: Recipe | None = None) -> None:
        self.domain, self.recipe = domain, recipe or Recipe()
        self.graph = Graph(domain)
        self._lock = Lock()
        if self.recipe.tools > len(self.graph.tools):
            raise ConfigError(
                f"domain {domain.name!r} has {len(self.graph.tools)} tools, {self.recipe.tools} were asked for",
                where="tools",
            )

    @cached_property
    def _bench(self) -> World:
        """A world in which builds try things, each in a transaction that is undone; statements are compiled once."""
        return World(self.domain.schema)

    def build(self, seed: str) -> BuiltTask:
        """Build the environment of a seed.

        Raises:
            EngineError: no task was found, which is a defect of the domain.
        """
        with self._lock:
            for round_ in range(MAX_BUILDS):
                built = _Build(self, self._bench, seed, Random(f"{self.domain.name}/{seed}/{round_}")).run()
                if built is not None:
                    return built
        raise EngineError(f"domain {self.domain.name!r} gave no task for seed {seed!r} in {MAX_BUILDS} rounds")


class _Build:
    """One round of building."""

    def __init__(self, factory: Factory, world: World, seed: str, rng: Random) -> None:
        self.domain, self.recipe, self.graph = factory.domain, factory.recipe, factory.graph
        self.seed, self.rng = seed, rng
        self.rows = Rows(self.domain.blueprint, rng, self.domain.words, self.domain.today)
        self.world = world
        self.world.salt = seed
        self.loaded = 0
        self.person = ""
        self.weights = dict.fromkeys(self.graph.tools, 1.0)
        self.tools: dict[str, WorldTool] = {}
        self.chains: list[tuple[Step, ...]] = []
        self.replays: list[Replay] = []
        self.wishes: list[Wish] = []
        self.attempts: list[int | None] = []
        self.banned: set[str] = set()  # tools whose rows disturbed a chain

    def run(self) -> BuiltTask | None:
        with self.world.undone():
            return self._run()

    def _run(self) -> BuiltTask | None:
        person = self.person = self._populate()
        self.world.load(self._frozen())
        self.loaded = self.rows.mark()
        chains = Chains(self.domain, self.rows, self.rng, person, self.weights)
        for _ in range(MAX_CHAINS):
            mark = self.rows.mark()
            found, _ = chains.sample(self.graph.tools, *self.recipe.calls, self.recipe.tools)
            first = self._replay(chain_of(found)) if found else None
            if found and first and self._useful(found, first):
                break
            self.rows.undo(mark)
        else:
            return None
        self.wishes, self.chains, self.replays = found, [chain_of(found)], [first]
        self._keep()
        self._admit(step.tool for step in self.chains[0])
        if self.recipe.growth == "checked":
            self._grow(chains)
            if len(self.tools) < self.recipe.tools:
                return None
        else:
            self._inject()
        return self._finish(person)

    def _populate(self) -> str:
        blueprint = self.domain.blueprint
        person = self._person()
        for entity in blueprint.entities:
            have = len(self.rows.tables[entity.plural])
            for _ in range(have, entity.count):
                mine = entity.name != blueprint.person and self.rng.random() < 0.5
                self.rows.make(entity.name, owner=person if mine else None)
        return person

    def _person(self) -> str:
        """Make the user, one of the half that the recipe asks for."""
        blueprint = self.domain.blueprint
        entity = blueprint.by_name[blueprint.person]
        while True:
            mark = self.rows.mark()
            row = self.rows.make(entity.name)
            if not self.recipe.half or half_of(self.domain, row) == self.recipe.half:
                return str(row["id"])
            self.rows.undo(mark)

    def _replay(self, chain: Sequence[Step]) -> Replay | None:
        """Run a chain in the world as it is, and undo it."""
        try:
            with self.world.trial():
                for table, row in self.rows.since(self.loaded):
                    self.world.put(table, row)
                return replay(self.domain, self.world, chain)
        except ToolError:
            return None

    def _keep(self) -> None:
        """Write the rows that were added into the world."""
        with self.world.transaction():
            for table, row in self.rows.since(self.loaded):
                self.world.put(table, row)
        self.loaded = self.rows.mark()

    def _frozen(self) -> dict[str, list[Row]]:
        return {table: list(rows.values()) for table, rows in self.rows.tables.items()}

    def _useful(self, wishes: Sequence[Wish], first: Replay) -> bool:
        """Whether the task can be judged, and needs every call."""
        changing = [place for place, outcome in enumerate(first.outcomes) if outcome.view.written]
        if not changing and not any(wish.tell for wish in wishes):
            return False
        return (
            self._answers_are_steady(wishes, first, changing)
            and self._statements_are_told_apart(wishes, first)
            and self._changes_are_needed(wishes, first, changing)
        )

    def _answers_are_steady(self, wishes: Sequence[Wish], first: Replay, changing: Sequence[int]) -> bool:
        """Whether what is asked for does not depend on when it is asked for."""
        place = -1
        for wish in wishes:
            place += len(wish.steps)
            asked = first.outcomes[place].view
            if wish.tell and not all(
                commute(asked, first.outcomes[other].view) for other in changing if other != place
            ):
                return False
        return True

    def _statements_are_told_apart(self, wishes: Sequence[Wish], first: Replay) -> bool:
        """Whether an honest report of all but one statement neither states that one nor another of its choices."""
        told = {str(value) for *_, old, new in first.delta for row in (old, new) if row for value in row.values()}
        statements = _statements(self.domain, wishes, first)
        for statement in statements:
            rest = report(wishes, [other for other in statements if other is not statement])
            if states(statement, rest):  # a weight of 20 would state an amount of $20.00
                return False
            if statement.kind == "choice":
                others = set(choices_of(self.domain, statement))
                if (others - {statement.value}) & told or any(holds(rest, word) for word in others):
                    return False
        return True

    def _changes_are_needed(self, wishes: Sequence[Wish], first: Replay, changing: Sequence[int]) -> bool:
        """Whether each call that changes the world leaves its own trace, whatever the order of the wishes.

        Two calls may set the same column only if it is a number to which both add: then the reverse order gives the
        same world, and leaving either out gives another.
        """
        blueprint, chain = self.domain.blueprint, chain_of(wishes)
        shared: set[tuple[str, str, str]] = set()
        seen: set[tuple[str, str, str]] = set()
        for place in changing:
            shared |= seen & first.outcomes[place].view.changed
            seen |= first.outcomes[place].view.changed
        if not shared:
            return True
        if any(
            blueprint.by_table[table].by_name[column].kind not in ("money", "integer") for table, _, column in shared
        ):
            return False
        reverse = self._replay(chain_of(wishes[::-1]))
        if reverse is None or reverse.delta != first.delta:
            return False
        for place in changing:
            without = self._replay([*chain[:place], *chain[place + 1 :]])
            if without is not None and without.delta == first.delta:
                return False
        return True

    def _admit(self, names: Any) -> None:
        for name in names:
            self.tools.setdefault(name, self.graph.tools[name])

    def _grow(self, chains: Chains) -> None:
        self._extend(self.recipe.breadth)
        while len(self.tools) < self.recipe.tools:
            outside = [name for name in self.graph.tools if name not in self.tools]
            goals = [name for name in outside if self.graph.tools[name].form in ("action", "edit", "details", "count")]
            mark = self.rows.mark()
            wishes, attempts = chains.sample(
                self.graph.tools, *self.recipe.calls, self.recipe.tools - len(self.tools), goals=goals
            )
            if wishes is None or self._decision(attempts, len(outside)) <= self.recipe.tau:
                self.rows.undo(mark)
                self.attempts.append(None)
                break
            chain = chain_of(wishes)
            new = {step.tool for step in chain} - self.tools.keys()
            made = self._replay(chain) if len(self.tools) + len(new) <= self.recipe.tools else None
            if made is None or not self._conservative():
                self.rows.undo(mark)
                self.attempts.append(None)
                break
            self.attempts.append(attempts)
            self.chains.append(chain)
            self.replays.append(made)
            self._admit(step.tool for step in chain)
            self._keep()
            self._extend(self.recipe.breadth)
        while len(self.tools) < self.recipe.tools:
            have, banned = len(self.tools), len(self.banned)
            self._extend(self.recipe.tools)
            if (len(self.tools), len(self.banned)) == (have, banned):
                break

    def _decision(self, attempts: int, outside: int) -> float:
        """The page's p = f(c(E), g(D), |D|): falls with complexity and with how hard another chain is to find."""
        names = self.tools.keys()
        complexity = len(names) * (1 + self.graph.density(frozenset(names)))
        even = 2 * (1 - complexity / self.recipe.complexity)
        drawn = even - attempts / self.recipe.attempts + outside / len(self.graph.tools)
        return 1 / (1 + math.exp(-drawn))

    def _extend(self, room: int) -> None:
        """Breadth first: add tools next to those that are there, as long as the golden chains notice nothing."""
        mark, before = self.rows.mark(), dict(self.tools)
        changed: list[str] = []
        frontier = list(self.tools)
        skipped = set(self.banned)
        known = set(closure(self.tools.values(), self.graph.told_by_person))
        filled = {table for table, rows in self.rows.tables.items() if rows}
        while frontier and len(self.tools) < self.recipe.tools and len(self.tools) - len(before) < room:
            near = sorted({other for name in frontier for other in self.graph.below[name] | self.graph.above[name]})
            near = [name for name in near if name not in self.tools and name not in skipped]
            self.rng.shuffle(near)
            frontier = []
            for name in near:
                if len(self.tools) >= self.recipe.tools or len(self.tools) - len(before) >= room:
                    break
                inner, tool = self.rows.mark(), self.graph.tools[name]
                if self.graph.deps_ok(tool, known, filled) and self._instantiate(tool):
                    self.tools[name] = tool
                    known |= tool.provides
                    frontier.append(name)
                    if self.rows.mark() != inner:
                        changed.append(name)
                else:
                    self.rows.undo(inner)
                    skipped.add(name)
        if changed and not self._conservative():
            # A row that some tool needed disturbs a chain: keep the tools that needed no new row.
            self.rows.undo(mark)
            self.banned |= set(changed)
            for name in changed:
                del self.tools[name]
            for name in stranded(self.tools.values(), self.graph.told_by_person):
                self.tools.pop(name)
        self._keep()

    def _instantiate(self, tool: WorldTool) -> bool:
        """See to it that a tool has something to work on: rows with which its conditions hold, of somebody."""
        if tool.form == "action":
            return self._fits_somebody(tool) or self._bind(tool, self.rng.choice(self._people()), "make")
        if tool.form == "edit":
            return any(bind_edit(self.domain, tool, self.rows, self.rng, owner) is not None for owner in self._people())
        return bool(self.rows.find(tool.entity))

    def _people(self) -> list[str]:
        return list(self.rows.tables[self.domain.blueprint.by_name[self.domain.blueprint.person].plural])

    def _fits_somebody(self, tool: WorldTool) -> bool:
        return any(self._bind(tool, person, "find") for person in self._people())

    def _bind(self, tool: WorldTool, person: str, how: Instantiate) -> bool:
        return bind(self.domain, self.domain.by_tool[tool.name], self.rows, self.rng, person, how=how) is not None

    def _inject(self) -> None:
        """Add random tools and patch rows so that these can be called, whatever depends on those rows."""
        outside = [name for name in self.graph.tools if name not in self.tools]
        self.rng.shuffle(outside)
        for name in outside[: self.recipe.tools - len(self.tools)]:
            tool = self.tools[name] = self.graph.tools[name]
            if tool.form != "action" or (self.recipe.growth == "random-fitting" and self._fits_somebody(tool)):
                continue
            own = self.recipe.growth == "random-own"
            self._bind(tool, self.person if own else self.rng.choice(self._people()), "patch")

    def _conservative(self) -> bool:
        """Whether every golden chain still gives the same bytes and changes the same rows in the same way.

        Chains are replayed if they look at anything that is new: a call depends on the rows that it reads and on the
        tables that it searches or adds to, and on nothing else.
        """
        if not self._unambiguous():
            return False
        fresh = [(table, row["id"]) for table, row in self.rows.since(self.loaded)]
        for chain, made in zip(self.chains, self.replays, strict=True):
            if not any(outcome.view.sees(table, row_id) for outcome in made.outcomes for table, row_id in fresh):
                continue
            again = self._replay(chain)
            if again is None or (again.texts, again.delta) != (made.texts, made.delta):
                return False
        return True

    def _unambiguous(self) -> bool:
        blueprint = self.domain.blueprint
        for wish in self.wishes:
            for pointed in wish.pointed:
                entity = blueprint.by_name[pointed.entity]
                row = self.rows.tables[entity.plural][pointed.row]
                if not stands_out(self.rows, entity, row, pointed.handle):
                    return False
        return True

    def _finish(self, person: str) -> BuiltTask | None:
        rows, made = self._frozen(), self.replays[0]
        names = list(self.tools)
        self.rng.shuffle(names)
        statements = _statements(self.domain, self.wishes, made)
        asked = request(self.domain, self.rows, self.rng, person, self.wishes, self.recipe.withheld)
        return BuiltTask(
            domain=self.domain,
            recipe=self.recipe,
            seed=self.seed,
            tools={name: self.tools[name] for name in names},
            rows=rows,
            person=person,
            wishes=tuple(self.wishes),
            chains=tuple(self.chains),
            request=asked,
            statements=statements,
            recorded=tuple((found.texts, found.delta) for found in self.replays),
            attempts=tuple(self.attempts),
        )


def _statements(domain: Domain, wishes: Sequence[Wish], made: Replay) -> tuple[Statement, ...]:
    found, place = [], 0
    for wish in wishes:
        place += len(wish.steps)
        if not wish.tell:
            continue
        tool = domain.tools[wish.steps[-1].tool]
        output = next(output for output in tool.outputs if output.name == wish.tell)
        value = made.outcomes[place - 1].answers[0][wish.tell]
        fresh = output.kind == "id" and any(row_id == value and before is None for _, row_id, before, _ in made.delta)
        found.append(Statement(output.kind, value, output.fact, wish.question, fresh))
    return tuple(found)


def half_of(domain: Domain, person: Row) -> Half:
    """Return the half that a person belongs to: by a hash of how they introduce themselves: no opening is in both."""
    named = sorted({name for _, name, _, _ in Formatter().parse(domain.greetings[0]) if name})
    digest = hashlib.sha256(repr([person[name] for name in named]).encode()).digest()
    return "held-out" if digest[0] % 2 else "train"
