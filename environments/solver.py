"""A solver that finds chains of its own: it knows what the person knows, sees what tools answer, and the goals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from stackloom.core.slots.environment import ToolError
from stackloom.environments.chains import Step
from stackloom.environments.factory import BuiltTask, run_step
from stackloom.environments.tools import Arguments, WorldTool
from stackloom.environments.values import Value
from stackloom.environments.verifier import matches
from stackloom.environments.world import World


@dataclass(frozen=True)
class Solution:
    """What the solver found.

    Attributes:
        chain: calls that reach the goals, each with arguments that were known when it was made; None if it gave up.
        attempts: calls that it tried.
    """

    chain: tuple[Step, ...] | None
    attempts: int


def solve(built: BuiltTask, seed: str, *, budget: int = 200) -> Solution:
    """Look for a chain by bounded random search over typed facts.

    A goal is a call of the golden chain that changes the world, or one whose answer is asked for. It is made once all
    its arguments are known facts; until then the solver makes any other call whose arguments are known. Where another
    tool has the same effect, that one may be taken.

    Args:
        seed: decides the search.
        budget: most calls that are tried.
    """
    return _Search(built, Random(f"{built.seed}/{seed}"), budget).run()


def difficulty(built: BuiltTask, *, tries: int = 8, budget: int = 200) -> float:
    """Return the mean number of calls that the solver tries; a search that fails counts its budget."""
    found = [solve(built, str(number), budget=budget) for number in range(tries)]
    return sum(solution.attempts if solution.chain else budget for solution in found) / tries


class _Search:
    def __init__(self, built: BuiltTask, rng: Random, budget: int) -> None:
        self.built, self.rng, self.budget = built, rng, budget
        self.known: dict[str, set[Value]] = defaultdict(set)
        for item in built.known:
            self.known[item.fact].add(item.value)
        for entity in built.domain.blueprint.entities:
            for column in entity.columns:
                if column.choices and not column.parent:  # a tool's schema lists them
                    self.known[entity.fact(column.name)] |= set(column.choices)
        self.made: list[Step] = []
        self.attempts = 0

    def run(self) -> Solution:
        world = self.built.world()
        try:
            goals = self._goals(world)
            self.rng.shuffle(goals)
            while goals and self.attempts < self.budget:
                ready = next((goal for goal in goals if self._ready(goal)), None)
                if ready is not None:
                    self.attempts += 1
                    if self._reach(world, ready):
                        goals.remove(ready)
                        continue
                    goals.append(goals.pop(goals.index(ready)))  # it has to wait for another goal
                if not self._explore(world) and ready is None:
                    break
        finally:
            world.close()
        return Solution(None if goals else tuple(self.made), self.attempts)

    def _goals(self, world: World) -> list[Step]:
        wanted = [wish.steps[-1] for wish in self.built.wishes if wish.tell]
        changes = [step for step in self.built.golden if self.built.domain.tools[step.tool].writes]
        return [step for step in self.built.golden if step in wanted or step in changes]

    def _ready(self, step: Step) -> bool:
        tool = self.built.domain.tools[step.tool]
        return all(step.arguments[item.name] in self.known[item.fact] for item in tool.parameters)

    def _reach(self, world: World, goal: Step) -> bool:
        """Make the goal's call, or one of another tool that does the same."""
        if all(goal != wish.steps[-1] for wish in self.built.wishes if wish.tell):
            others = [name for name in self.built.tools if name != goal.tool and self._alike(name, goal)]
            self.rng.shuffle(others)
            for name in others[:2]:
                arguments = self._carried(self.built.tools[name], goal)
                if arguments and self._same_effect(world, goal, Step(name, arguments)):
                    return self._make(world, Step(name, arguments))
        return self._make(world, goal)

    def _alike(self, name: str, goal: Step) -> bool:
        tool, other = self.built.tools[name], self.built.domain.tools[goal.tool]
        return bool(tool.writes) and tool.writes <= other.writes

    def _carried(self, tool: WorldTool, goal: Step) -> Arguments | None:
        """Fill another tool's parameters with the goal's values of the same types."""
        facts = {item.fact: goal.arguments[item.name] for item in self.built.domain.tools[goal.tool].parameters}
        found: Arguments = {}
        for item in tool.parameters:
            if item.fact not in facts:
                return None
            found[item.name] = facts[item.fact]
        return found

    def _same_effect(self, world: World, goal: Step, other: Step) -> bool:
        before, initial = world.snapshot(), {table: frozenset(rows) for table, rows in world.contents().items()}
        ends = []
        for step in (goal, other):
            try:
                run_step(self.built.domain, world, step)
            except ToolError:
                return False
            finally:
                ends.append(world.contents())
                world.restore(before)
        return next(matches(self.built.domain.blueprint, initial, *ends), None) is not None

    def _explore(self, world: World) -> bool:
        """Make some call that changes nothing and was not made yet."""
        calls = [step for tool in self.built.tools.values() if not tool.writes for step in self._possible(tool)]
        fresh = [step for step in calls if step not in self.made]
        if not fresh:
            return False
        self.attempts += 1
        self._make(world, self.rng.choice(fresh))
        return True

    def _possible(self, tool: WorldTool) -> Sequence[Step]:
        options = [sorted(self.known[item.fact], key=repr) for item in tool.parameters]
        if any(not values for values in options):
            return []
        drawn = [{item.name: self.rng.choice(values) for item, values in zip(tool.parameters, options, strict=True)}]
        if len(options) == 1:
            drawn = [{tool.parameters[0].name: value} for value in options[0]]
        return [Step(tool.name, arguments) for arguments in drawn]

    def _make(self, world: World, step: Step) -> bool:
        try:
            outcome = run_step(self.built.domain, world, step)
        except ToolError:
            return False
        self.made.append(step)
        tool = self.built.domain.tools[step.tool]
        for answer in outcome.answers:
            for output in tool.outputs:
                self.known[output.fact].add(answer[output.name])
        return True
