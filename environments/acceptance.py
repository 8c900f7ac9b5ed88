"""The acceptance suite: attempts at one task that the verifier has to accept, and attempts that it has to reject."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from random import Random
from typing import Any

from stackloom.core.chat import Message, ToolCall
from stackloom.core.slots.environment import ToolError
from stackloom.environments.chains import Step, bind, bind_edit
from stackloom.environments.factory import BuiltTask, run_step
from stackloom.environments.rows import Rows
from stackloom.environments.solver import solve
from stackloom.environments.statements import NAMED, Statement, other_names, own_words
from stackloom.environments.tools import Arguments, Parameter, WorldTool, call
from stackloom.environments.values import Value, argument, say
from stackloom.environments.verifier import Verdict, matches, verify
from stackloom.environments.wording import report
from stackloom.environments.world import Contents, World, commute, make_id

ORDERS = 3  # of commuting calls, per task
SOLUTIONS = 3  # of the solver, per task
EXTRAS = 3  # destructive writes, per task


@dataclass(frozen=True)
class Call:
    """A call as an agent makes it; its arguments may be anything."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One attempt and what the verifier must say.

    Attributes:
        kind: "golden", "order", "alternative", "retry", "detour"; "prefix", "mutated", "extra", "idle", "unstated".
        name: what exactly it does.
        right: whether it must be accepted.
        calls: what is called.
        final: the final message; None for an attempt that ends without one.
    """

    kind: str
    name: str
    right: bool
    calls: tuple[Call, ...]
    final: str | None


@dataclass(frozen=True)
class Judged:
    """An attempt with its verdict."""

    attempt: Attempt
    verdict: Verdict

    @property
    def as_wanted(self) -> bool:
        """Whether the verifier said what it has to."""
        return self.verdict.passed == self.attempt.right


def accept(built: BuiltTask) -> list[Judged]:
    """Run the whole suite of a task.

    Example:
        >>> all(judged.as_wanted for judged in accept(factory.build("7")))
        True
    """
    return [Judged(attempt, attempted(built, attempt)) for attempt in attempts(built)]


def attempted(built: BuiltTask, attempt: Attempt) -> Verdict:
    """Make an attempt in a new world and judge it."""
    world = built.world()
    try:
        messages = list(perform(built, world, attempt.calls))
        if attempt.final is not None:
            messages.append(Message("assistant", attempt.final))
        return verify(built, world, messages)
    finally:
        world.close()


def perform(built: BuiltTask, world: World, calls: Sequence[Call]) -> Iterator[Message]:
    """Make calls the way the agent loop does, errors shown and all."""
    for made in calls:
        yield Message("assistant", "", (ToolCall(made.tool, made.arguments, "call_0"),))
        try:
            text = call(world, built.domain.tools[made.tool], made.arguments, built.domain.today).text
        except ToolError as refused:
            text = f"Error: {refused}"
        yield Message("tool", text, tool_call_id="call_0", name=made.tool)


def attempts(built: BuiltTask) -> Iterator[Attempt]:
    """Yield the suite of a task: what must be accepted, then what must be rejected."""
    rng = Random(f"{built.seed}/acceptance")
    golden, final = tuple(as_call(built, step) for step in built.golden), report(built.wishes, built.statements)
    yield Attempt("golden", "the golden chain", True, golden, final)
    yield from _orders(built, rng, golden, final)
    yield from _alternatives(built, final)
    yield from _retries(built, golden, final)
    yield from _detours(built, rng, golden, final)
    yield from _prefixes(built, golden, final)
    yield from _mutations(built, rng, golden, final)
    yield from _extras(built, rng, golden, final)
    yield from _unstated(built, golden, final)


def as_call(built: BuiltTask, step: Step) -> Call:
    """Return a step as an agent makes it."""
    return Call(step.tool, built.domain.tools[step.tool].write(step.arguments))


def _changes(built: BuiltTask, made: Call) -> bool:
    return bool(built.domain.tools[made.tool].writes)


def _orders(built: BuiltTask, rng: Random, golden: tuple[Call, ...], final: str) -> Iterator[Attempt]:
    """Orders that neighbouring calls which commute can be brought into, one exchange at a time."""
    world = built.world()
    views = [run_step(built.domain, world, step).view for step in built.golden]
    world.close()
    seen = {tuple(range(len(golden)))}
    for _ in range(ORDERS):
        order = list(range(len(golden)))
        for _ in range(3 * len(order)):
            place = rng.randrange(len(order))
            if place and commute(views[order[place - 1]], views[order[place]]):
                order[place - 1], order[place] = order[place], order[place - 1]
        if tuple(order) not in seen:
            seen.add(tuple(order))
            chain = [built.golden[place] for place in order]
            calls = tuple(golden[place] for place in order)
            yield Attempt("order", f"order {order}", True, calls, answer_of(built, chain) or final)


def _alternatives(built: BuiltTask, final: str) -> Iterator[Attempt]:
    """Chains that the solver finds."""
    for number in range(SOLUTIONS):
        chain = solve(built, f"acceptance/{number}").chain
        if chain is None:
            continue
        calls = tuple(as_call(built, step) for step in chain)
        yield Attempt("alternative", f"solver chain {number}", True, calls, answer_of(built, chain) or final)


def answer_of(built: BuiltTask, chain: Sequence[Step]) -> str:
    """Return the final message of an agent that made these calls, from what they answered; "" without statements.

    Ids of new rows follow from the order of calls, so another order's answer may differ from the golden one.
    """
    if not built.statements:
        return ""
    world = built.world()
    outcomes = [run_step(built.domain, world, step) for step in chain]
    world.close()
    asked = [wish for wish in built.wishes if wish.tell]
    found: list[Statement] = []
    for wish, statement in zip(asked, built.statements, strict=True):
        place = next(place for place, step in enumerate(chain) if step == wish.steps[-1])
        found.append(replace(statement, value=outcomes[place].answers[0][wish.tell]))
    return report(built.wishes, found)


def _retries(built: BuiltTask, golden: tuple[Call, ...], final: str) -> Iterator[Attempt]:
    """Each call fails once, in one of two ways, before it is made rightly."""
    for place, made in enumerate(golden):
        names = list(made.arguments)
        broken: dict[str, Any] = (
            {name: {"a": [1]} for name in names} if place % 2 else {**made.arguments, "not_there": 1}
        )
        calls = (*golden[:place], Call(made.tool, broken), *golden[place:])
        yield Attempt("retry", f"call {place} fails first", True, calls, final)


def _detours(built: BuiltTask, rng: Random, golden: tuple[Call, ...], final: str) -> Iterator[Attempt]:
    """A call that only reads is made with one argument changed before it is made rightly: looking harms nobody."""
    for place, made in enumerate(golden):
        if _changes(built, made):
            continue
        item = rng.choice(built.domain.tools[made.tool].parameters)
        other = rng.choice(_others(built, rng, item, built.golden[place].arguments[item.name]))
        elsewhere = Call(made.tool, {**made.arguments, item.name: argument(item.kind, other)})
        calls = (*golden[:place], elsewhere, *golden[place:])
        yield Attempt("detour", f"call {place} first looks at {item.name} {other!r}", True, calls, final)


def _prefixes(built: BuiltTask, golden: tuple[Call, ...], final: str) -> Iterator[Attempt]:
    for length in range(len(golden) + 1):
        yield Attempt("prefix", f"{length} calls and no answer", False, golden[:length], None)
    for length in range(len(golden)):
        if any(_changes(built, made) for made in golden[length:]):
            kind = "prefix" if length else "idle"
            yield Attempt(kind, f"{length} calls and the claim that all is done", False, golden[:length], final)
    yield Attempt("idle", "an empty answer", False, golden, " ")


def _mutations(built: BuiltTask, rng: Random, golden: tuple[Call, ...], final: str) -> Iterator[Attempt]:
    """One argument of one changing call is another one."""
    for place, made in enumerate(golden):
        if not _changes(built, made):
            continue
        for item in built.domain.tools[made.tool].parameters:
            value = built.golden[place].arguments[item.name]
            for other in _others(built, rng, item, value):
                changed = Call(made.tool, {**made.arguments, item.name: argument(item.kind, other)})
                calls = (*golden[:place], changed, *golden[place + 1 :])
                yield Attempt("mutated", f"call {place}: {item.name} {value!r} -> {other!r}", False, calls, final)


def _others(built: BuiltTask, rng: Random, item: Parameter, value: Value) -> Sequence[Value]:
    """Return values near to one: other rows, the next day, a cent more, another choice."""
    if item.table:
        entity = built.domain.blueprint.by_table[item.table]
        ids = [str(row["id"]) for row in built.rows[item.table] if row["id"] != value]
        return [*rng.sample(ids, min(2, len(ids))), make_id(entity.prefix, f"nobody/{value}")]
    match item.kind:
        case "choice":
            return [choice for choice in item.choices if choice != value][:2]
        case "money" | "integer":
            return [number for number in (int(value) + 1, int(value) - 1) if item.low <= number <= item.high]
        case "date" | "clock":
            day = (date.fromisoformat(str(value)[:10]) + timedelta(days=1)).isoformat()
            return [day + str(value)[10:]]
    return [f"{value} 2"]


def _extras(built: BuiltTask, rng: Random, golden: tuple[Call, ...], final: str) -> Iterator[Attempt]:
    """All is done rightly, and then something else is changed."""
    world = built.world()
    for step in built.golden:
        run_step(built.domain, world, step)
    done, snapshot = world.contents(), world.snapshot()
    found = 0
    names = [name for name, tool in built.tools.items() if tool.writes]
    rng.shuffle(names)
    initial = {table: frozenset(rows) for table, rows in done.items()}
    for name in names:
        if found == EXTRAS:
            break
        extra = possible(built, built.domain.tools[name], done, rng)
        if extra is None:
            continue
        try:
            run_step(built.domain, world, extra)
        except ToolError:
            continue
        changed = world.contents()
        world.restore(snapshot)
        if next(matches(built.domain.blueprint, initial, done, changed), None) is None:
            found += 1
            yield Attempt("extra", f"also {name}", False, (*golden, as_call(built, extra)), final)
    world.close()


def possible(built: BuiltTask, tool: WorldTool, contents: Contents, rng: Random) -> Step | None:
    """Return some call of a tool that could succeed in a world with these contents."""
    domain = built.domain
    rows = Rows.of(contents, domain.blueprint, rng, domain.words, domain.today)
    mark = rows.mark()
    people = list(rows.tables[domain.blueprint.by_name[domain.blueprint.person].plural])
    given: dict[str, Any] | None
    if tool.form == "action":
        given = bind(domain, domain.by_tool[tool.name], rows, rng, rng.choice(people))
    elif tool.form == "edit":
        given = bind_edit(domain, tool, rows, rng, rng.choice(people))
        if given is not None:
            given[tool.column] = given["value"]
    else:
        found: list[dict[str, Any]] = [
            {item.key: {"id": rng.choice(sorted(rows.tables[item.table]))} for item in tool.parameters if item.table}
        ]
        given = found[0] if len(found[0]) == len(tool.parameters) else None
    if given is None or rows.mark() != mark:
        return None
    arguments: Arguments = {}
    for item in tool.parameters:
        arguments[item.name] = given[item.key]["id"] if item.table else given[item.key]
    return Step(tool.name, arguments)


def _unstated(built: BuiltTask, golden: tuple[Call, ...], final: str) -> Iterator[Attempt]:
    """The world is right and the answer is not: it leaves a value out, doubts, denies or misnames it, or lists many."""
    for place, statement in enumerate(built.statements):
        value = say(statement.kind, statement.value)
        rest = [other for other in built.statements if (other.kind, other.value) != (statement.kind, statement.value)]
        spoken = report(built.wishes, rest)
        yield Attempt("unstated", f"says nothing of {statement.noun}", False, golden, spoken or "All is done.")
        yield Attempt("unstated", f"asks for {statement.noun}", False, golden, f"{spoken} Is it {value}?".strip())
        yield Attempt("unstated", f"denies {statement.noun}", False, golden, f"{spoken} It is not {value}.".strip())
        for name in _wrong_names(built, statement):
            yield Attempt("unstated", f"calls it the {name}", False, golden, f"{spoken} The {name} is {value}.".strip())
        for other in _near(built, statement):
            wrong = say(statement.kind, other)
            instead = [replace(statement, value=other) if i == place else s for i, s in enumerate(built.statements)]
            yield Attempt("unstated", f"{wrong} for {value}", False, golden, report(built.wishes, instead))
            yield Attempt("unstated", f"{value} or {wrong}", False, golden, f"{final} Or is it rather {wrong}.")


def _wrong_names(built: BuiltTask, statement: Statement) -> list[str]:
    """Return names of other fields that hold the value nowhere and share no word with what was asked for."""
    if statement.kind not in NAMED:
        return []
    own = own_words(statement)
    names = other_names(built.domain, statement, statement.value, built.target)
    return [name for name in names if not own & {word[:4] for word in re.findall(r"[a-z]+", name.lower())}][:2]


def _near(built: BuiltTask, statement: Statement) -> list[Value]:
    """Return wrong values for a statement: a neighbour, and another row's value of the same column."""
    entity, _, name = statement.fact.partition(".")
    column = (
        built.domain.blueprint.by_name[entity].by_name.get(name) if entity in built.domain.blueprint.by_name else None
    )
    item = Parameter("", statement.kind, statement.fact, "", choices=column.choices if column else (), low=-(10**9))
    if statement.kind == "id":
        return [re.sub(r".$", "7" if str(statement.value)[-1] != "7" else "8", str(statement.value))]
    near = list(_others(built, Random(0), item, statement.value))
    if column:
        table = built.domain.blueprint.by_name[entity].plural
        near += [row[name] for row in built.rows[table] if row[name] != statement.value][:2]
    user = built.request.opening
    return [value for value in dict.fromkeys(near) if say(statement.kind, value) not in user]
