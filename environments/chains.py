"""Golden chains: what a person wants, and the calls that get it done from what the person knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, TypeAlias

from stackloom.environments.domain import Action, Domain, Given, Says, Wants
from stackloom.environments.entities import Entity, Handle, Row
from stackloom.environments.rows import Draw, Rows
from stackloom.environments.tools import Arguments, WorldTool
from stackloom.environments.values import Kind, Value, say

Instantiate: TypeAlias = Literal["find", "make", "patch"]

# How often a wish is of each form, whatever the number of tools. [inferred]
SHARES = {"action": 0.55, "edit": 0.15, "details": 0.2, "count": 0.1}
DECAY = 0.5  # of a tool's weight once a chain has used it [inferred]
MAX_TRIES = 40


@dataclass(frozen=True)
class Step:
    """One call, its arguments as the world stores them."""

    tool: str
    arguments: Arguments

    def key(self) -> tuple[str, tuple[tuple[str, Value], ...]]:
        """A form in which equal steps are equal."""
        return self.tool, tuple(sorted(self.arguments.items()))


@dataclass(frozen=True)
class Known:
    """Something that the person knows.

    Attributes:
        fact, value: typed, as a world stores it.
        noun: how it is called: "email address".
        text: how the person writes it.
    """

    fact: str
    value: Value
    noun: str
    text: str


@dataclass(frozen=True)
class Pointed:
    """A row that the person points at; the handle's values must single it out among rows of that owner."""

    entity: str
    row: str
    handle: Handle


@dataclass(frozen=True)
class Wish:
    """One thing that a person wants.

    Attributes:
        steps: the calls that it takes; the last is what it is about.
        ask: the request; brackets hold what can be left out until asked.
        slots: what the brackets hold.
        done: how its success is reported; empty for a question.
        tell: name of the last answer's field that the person asks for; empty for none.
        question: how that is asked for: "the total of my order from 4 May".
        known: what the person says in it.
        pointed: rows that it points at.
    """

    steps: tuple[Step, ...]
    ask: str
    done: str = ""
    tell: str = ""
    question: str = ""
    slots: tuple[Known, ...] = ()
    known: tuple[Known, ...] = ()
    pointed: tuple[Pointed, ...] = ()


@dataclass
class _Found:
    """What a resolution has gathered so far."""

    steps: list[Step] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    pointed: list[Pointed] = field(default_factory=list)
    phrases: dict[tuple[str, str], str] = field(default_factory=dict)
    kinds: set[Kind] = field(default_factory=set)  # of asked values: one of a kind, so that none stands for another

    def copy(self) -> _Found:
        return _Found(list(self.steps), list(self.known), list(self.pointed), dict(self.phrases), set(self.kinds))


class Chains:
    """Draws chains for one person over one world's rows.

    Args:
        domain: its tools and wording.
        rows: may grow by what a wish needs.
        rng: the only source of chance.
        person: id of who wishes.
        weights: of each tool; halved when a chain uses it.
    """

    def __init__(self, domain: Domain, rows: Rows, rng: Random, person: str, weights: dict[str, float]) -> None:
        self.domain, self.rows, self.rng, self.person, self.weights = domain, rows, rng, person, weights
        self._blueprint = domain.blueprint

    def sample(
        self, allowed: Mapping[str, WorldTool], low: int, high: int, tools: int, *, goals: Sequence[str] = ()
    ) -> tuple[list[Wish] | None, int]:
        """Draw wishes whose calls number low to high, with at most `tools` different tools.

        Args:
            allowed: what may be called.
            goals: what the wishes may be about; the default is everything that can be wished for.

        Returns:
            The wishes, or None, and how many attempts were made.
        """
        names = [name for name in goals or allowed if allowed[name].form in SHARES]
        shares = {form: sum(self.weights[name] for name in names if allowed[name].form == form) for form in SHARES}
        weights = [
            SHARES[allowed[name].form] * self.weights[name] / (shares[allowed[name].form] or 1.0) for name in names
        ]
        wishes: list[Wish] = []
        found, mark = _Found(), self.rows.mark()
        for attempt in range(1, MAX_TRIES + 1):
            if not names:
                break
            inner, trial = self.rows.mark(), found.copy()
            name = self.rng.choices(names, weights)[0]
            wish = self._wish(allowed, allowed[name], trial)
            used = {step.tool for step in trial.steps}
            again = any(other.steps[-1].tool == name for other in wishes)
            if (
                again
                or wish is None
                or len(trial.steps) > high
                or len(used) > tools
                or len(found.steps) == len(trial.steps)
            ):
                self.rows.undo(inner)
                continue
            wishes.append(wish)
            found = trial
            if len(found.steps) >= low and (len(found.steps) >= high - 1 or self.rng.random() < 0.5):
                for tool in used:
                    self.weights[tool] *= DECAY
                return wishes, attempt
        self.rows.undo(mark)
        return None, MAX_TRIES

    def _wish(self, allowed: Mapping[str, WorldTool], tool: WorldTool, found: _Found) -> Wish | None:
        before = (len(found.steps), len(found.known), len(found.pointed))
        if tool.form == "action":
            wish = self._action(allowed, tool, self.domain.by_tool[tool.name], found)
        elif tool.form == "edit":
            wish = self._edit(allowed, tool, found)
        else:
            wish = self._question(allowed, tool, found)
        if wish is None:
            return None
        return replace(
            wish,
            steps=tuple(found.steps[before[0] :]),
            known=tuple(found.known[before[1] :]),
            pointed=tuple(found.pointed[before[2] :]),
        )

    def _action(self, allowed: Mapping[str, WorldTool], tool: WorldTool, action: Action, found: _Found) -> Wish | None:
        given = bind(self.domain, action, self.rows, self.rng, self.person)
        if given is None:
            return None
        words, slots, arguments = {}, [], {}
        for name, item in action.takes.items():
            if isinstance(item, Says):
                known = Known(item.fact, given[name], item.noun, say(item.kind, given[name]))
                slots.append(known)
                words[name], arguments[name] = known.text, given[name]
                continue
            phrase = self._resolve(allowed, self._blueprint.by_name[item.entity], given[name], found)
            if phrase is None:
                return None
            words[name], arguments[f"{name}_id"] = phrase, given[name]["id"]
        ask = self.rng.choice(action.asks).format(**words)
        found.steps.append(Step(tool.name, arguments))
        found.known += slots
        tells = [item for item in action.tells if item.kind not in found.kinds and item.kind != "text"]
        tell = self.rng.choice(tells) if tells and self.rng.random() < 0.7 else None
        found.kinds |= {tell.kind} if tell else set()
        bracketed = ask[ask.find("[") + 1 : ask.rfind("]")] if "[" in ask else ""
        return Wish(
            (),
            ask,
            done=action.done,
            tell=tell.name if tell else "",
            question=f"the {tell.noun}" if tell else "",
            slots=tuple(known for known in slots if known.text in bracketed),
        )

    def _edit(self, allowed: Mapping[str, WorldTool], tool: WorldTool, found: _Found) -> Wish | None:
        entity = self._blueprint.by_name[tool.entity]
        given = bind_edit(self.domain, tool, self.rows, self.rng, self.person)
        phrase = self._resolve(allowed, entity, given[entity.name], found) if given else None
        if given is None or phrase is None:
            return None
        column = entity.by_name[tool.column]
        known = Known(
            entity.fact(column.name), given["value"], f"new {column.spoken}", say(column.kind, given["value"])
        )
        found.steps.append(Step(tool.name, {entity.id_name: given[entity.name]["id"], column.name: given["value"]}))
        found.known.append(known)
        ask = column.edit.format(it=phrase, value=known.text)
        noun = column.spoken if entity.name == self._blueprint.person else f"{column.spoken} of the {entity.spoken}"
        return Wish((), ask, done=f"the {noun} is changed", slots=(known,) if "[" in ask else ())

    def _question(self, allowed: Mapping[str, WorldTool], tool: WorldTool, found: _Found) -> Wish | None:
        entity = self._blueprint.by_name[tool.entity]
        candidates = self.rows.find(entity.name, owner=self.person)
        if not candidates:
            return None
        row = self.rng.choice(candidates)
        phrase = self._resolve(allowed, entity, row, found)
        askable = [column.name for column in entity.columns if _worth_asking(column)]
        wanted = [output for output in tool.outputs if tool.form == "count" or output.name in askable]
        nouns = {output.name: output.noun for output in wanted if output.kind not in found.kinds}
        if phrase is None or not nouns:
            return None
        tell = self.rng.choice(list(nouns))
        found.kinds |= {output.kind for output in wanted if output.name == tell}
        if entity.name != self._blueprint.person:
            question = f"the {nouns[tell]} of {phrase}"
        else:
            question = f"the {nouns[tell]} I have" if tool.form == "count" else f"my {nouns[tell]}"
        found.steps.append(Step(tool.name, {entity.id_name: row["id"]}))
        return Wish((), "", tell=tell, question=question)

    def _resolve(self, allowed: Mapping[str, WorldTool], entity: Entity, row: Row, found: _Found) -> str | None:
        """Find a way from what the person knows to a row's id; return how the person points at it."""
        key = (entity.name, row["id"])
        if key in found.phrases:
            return found.phrases[key]
        ways: list[tuple[float, WorldTool | None, Handle | None]] = []
        if entity.known_id:
            ways += [(1.0, None, handle) for handle in entity.handles if handle.columns == ("id",)]
        for tool in allowed.values():
            if tool.form == "lookup" and tool.entity == entity.name:
                ways += [(self.weights[tool.name], tool, handle) for handle in self._handles(entity, tool, row)]
        ordered = sorted(((self.rng.random() / (weight or 1e-9), place) for place, (weight, *_) in enumerate(ways)))
        for _, place in ordered:
            _, way, handle = ways[place]
            trial = found.copy()
            phrase = self._walk(allowed, entity, row, way, handle, trial)
            if phrase is not None:
                found.__dict__.update(trial.__dict__)
                found.phrases[key] = phrase
                return phrase
        return None

    def _handles(self, entity: Entity, tool: WorldTool, row: Row) -> list[Handle | None]:
        """Return handles by which the row stands out among what a lookup finds; None for the person, who needs none."""
        columns = [entity.by_name[name] for name in tool.by]
        plain = {column.name for column in columns if not column.parent}
        if any(not column.known for column in columns if not column.parent):
            return []
        if entity.name == self._blueprint.person:
            return [None] if len(columns) == 1 and columns[0].unique else []
        parents = {column.parent for column in columns if column.parent} - {self._blueprint.person}
        seen = {column.name for column in entity.columns if column.shown} | plain
        return [
            handle
            for handle in entity.handles
            if plain <= set(handle.columns) <= seen
            and all(("{" + parent + "}" in handle.words) == (parent in parents) for parent in _parents(entity))
            and stands_out(self.rows, entity, row, handle)
        ]

    def _walk(
        self,
        allowed: Mapping[str, WorldTool],
        entity: Entity,
        row: Row,
        tool: WorldTool | None,
        handle: Handle | None,
        found: _Found,
    ) -> str | None:
        words: dict[str, str] = {}
        arguments: Arguments = {}
        for name in tool.by if tool else ():
            column = entity.by_name[name]
            if column.parent:
                parent = self._blueprint.by_name[column.parent]
                phrase = self._resolve(allowed, parent, self.rows.tables[parent.plural][row[name]], found)
                if phrase is None:
                    return None
                words[parent.name], arguments[parent.id_name] = phrase, row[name]
            else:
                arguments[name] = row[name]
        for name in handle.columns if handle else tool.by if tool else ():
            kind = "id" if name == "id" else entity.by_name[name].kind
            noun = f"{entity.spoken} number" if name == "id" else entity.by_name[name].spoken
            words[name] = say(kind, row[name])
            found.known.append(Known(entity.fact(name), row[name], noun, words[name]))
        if tool:
            found.steps.append(Step(tool.name, arguments))
        if handle is None:
            return "me"
        found.pointed.append(Pointed(entity.name, row["id"], handle))
        return handle.words.format(**words)


def _parents(entity: Entity) -> set[str]:
    return {column.parent for column in entity.columns if column.parent}


def _worth_asking(column: Any) -> bool:
    return column.asked and not column.shown and not column.known and not column.parent and column.kind != "text"


def stands_out(rows: Rows, entity: Entity, row: Row, handle: Handle) -> bool:
    """Whether no other row that the person could mean has the same values in a handle's columns."""
    inside = [column.name for column in entity.columns if column.parent and "{" + column.parent + "}" in handle.words]
    names = (*handle.columns, *inside)
    values, owner = [row[name] for name in names], rows.owner(entity, row)
    return not any(
        other["id"] != row["id"] and [other[name] for name in names] == values and rows.owner(entity, other) == owner
        for other in rows.tables[entity.plural].values()
    )


def bind(
    domain: Domain, action: Action, rows: Rows, rng: Random, person: str, *, how: Instantiate = "make"
) -> Given | None:
    """Choose an action's arguments so that its conditions hold, adding rows where there are none.

    Args:
        person: to whom the rows belong that belong to anybody.
        how: "find" takes rows that fit; "make" adds one where there is none; "patch" takes any row of theirs and
            overwrites what does not fit.

    Returns:
        Rows and values by argument, or None if they cannot be had.
    """
    given: Given = {}
    for name, item in action.takes.items():
        if isinstance(item, Says):
            value = item.draw(Draw(rows, domain.blueprint.by_name[domain.blueprint.person], {}), given)
            if value is None:
                return None
            given[name] = value
            continue
        if how == "patch":
            row = _patched(domain, item, rows, rng, person)
        else:
            row = _fitting(domain, item, rows, rng, person, given, make=how == "make")
        if row is None:
            return None
        given[name] = row
    return given


def _fitting(
    domain: Domain, item: Wants, rows: Rows, rng: Random, person: str, given: Given, *, make: bool
) -> Row | None:
    def fits(row: Row) -> bool:
        return item.where is None or item.where(row, given)

    if item.entity == domain.blueprint.person:
        row = rows.tables[domain.blueprint.by_name[item.entity].plural][person]
        return row if fits(row) and all(row[name] in allowed for name, allowed in item.needs.items()) else None
    found = rows.find(item.entity, owner=person, needs=item.needs, where=fits)
    if found:
        return rng.choice(found)
    if not make:
        return None
    made = rows.make(item.entity, owner=person, fixed={name: tuple(allowed) for name, allowed in item.needs.items()})
    return made if fits(made) else None


def _patched(domain: Domain, item: Wants, rows: Rows, rng: Random, person: str) -> Row | None:
    table = domain.blueprint.by_name[item.entity].plural
    found = rows.find(item.entity, owner=person) or list(rows.tables[table].values())
    if not found:
        return None
    row = rng.choice(found)
    changes = {name: rng.choice(list(allowed)) for name, allowed in item.needs.items() if row[name] not in allowed}
    if changes:
        rows.set(table, row["id"], **changes)
    return rows.tables[table][row["id"]]


def bind_edit(domain: Domain, tool: WorldTool, rows: Rows, rng: Random, person: str) -> Given | None:
    """Choose a row of the person's and a new value for the column that a tool changes."""
    entity = domain.blueprint.by_name[tool.entity]
    column = entity.by_name[tool.column]
    found = rows.find(entity.name, owner=person)
    if not found or column.draw is None:
        return None
    row = rng.choice(found)
    taken = (
        {other[column.name] for other in rows.tables[entity.plural].values()} if column.unique else {row[column.name]}
    )
    for _ in range(MAX_TRIES):
        value = column.draw(Draw(rows, entity, {**row}))
        if value not in taken:
            return {entity.name: row, "value": value}
    return None
