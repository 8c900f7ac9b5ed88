"""The sheet of a written domain: everything about it as data, the rules of its actions as source text."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.manifest import dotted, explain
from stackloom.environments.domain import TODAY, Action, Domain, Given, Says, Tells, Wants
from stackloom.environments.domains.people import person_columns
from stackloom.environments.entities import Blueprint, Column, Entity, Handle
from stackloom.environments.rows import Draw
from stackloom.environments.sandbox import Sandbox
from stackloom.environments.writing.rules import Rules

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Text = Annotated[str, Field(min_length=1, max_length=300)]
SHARED = Path(__file__).parents[1] / "domains" / "words.toml"  # lists that all domains share


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DrawSheet(_Part):
    """How a value is drawn: integers and whole units of money from low to high, days from today for dates and moments.

    Text comes from a list of `words`, from that many random `digits`, or is copied from a parent: "title_id.name".
    """

    low: int = 1
    high: int = 30
    step: int = Field(1, ge=1)
    words: str = ""
    digits: int = Field(0, ge=0, le=12)
    copy_of: str = Field("", alias="copy")

    @model_validator(mode="after")
    def _has_room(self) -> DrawSheet:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class ColumnSheet(_Part):
    """One column; see `entities.Column` for what the flags mean."""

    name: Name
    kind: Literal["id", "text", "money", "date", "clock", "integer", "choice"]
    draw: DrawSheet = DrawSheet()
    choices: tuple[Name, ...] = ()
    parent: str = ""
    noun: str = ""
    own: bool = False
    known: bool = False
    shown: bool = False
    unique: bool = False
    asked: bool = True
    edit: str = ""

    def column(self) -> Column:
        """Return the column."""
        return Column(
            self.name,
            self.kind,
            None if self.kind == "id" else _drawing(self.kind, self.draw, self.choices),
            noun=self.noun,
            parent=self.parent,
            own=self.own,
            known=self.known,
            shown=self.shown,
            unique=self.unique,
            edit=self.edit,
            choices=self.choices,
            asked=self.asked,
        )


class HandleSheet(_Part):
    """How a person points at a row."""

    columns: tuple[str, ...] = Field(min_length=1)
    words: Text


class EntitySheet(_Part):
    """One kind of thing. The person's name, email and phone are there without being listed."""

    name: Name
    plural: Name
    prefix: Annotated[str, Field(pattern=r"^[A-Z]{1,4}$")]
    columns: tuple[ColumnSheet, ...] = ()
    handles: tuple[HandleSheet, ...] = ()
    count: int = Field(5, ge=1, le=20)
    lookups: tuple[tuple[str, ...], ...] = ()

    def entity(self, person: str) -> Entity:
        """Return the entity."""
        own = person_columns() if self.name == person else ()
        return Entity(
            self.name,
            self.plural,
            self.prefix,
            (*own, *(column.column() for column in self.columns)),
            tuple(Handle(handle.columns, handle.words) for handle in self.handles),
            count=self.count,
            lookups=self.lookups,
        )


class ArgumentSheet(_Part):
    """An argument: a row of an `entity`, whose columns may be limited by `needs`, or something that the person `says`.

    What is said names the column where it ends up: "order.cancel_reason".
    """

    name: Name
    entity: str = ""
    needs: dict[str, tuple[str | int, ...]] = {}
    says: str = ""
    kind: Literal["text", "money", "date", "clock", "integer", "choice"] = "text"
    noun: str = ""
    choices: tuple[Name, ...] = ()
    draw: DrawSheet = DrawSheet()

    @model_validator(mode="after")
    def _is_one_of_both(self) -> ArgumentSheet:
        if bool(self.entity) == bool(self.says):
            raise ValueError(f"argument {self.name!r} has either an entity or says")
        if self.says and not self.noun:
            raise ValueError(f"argument {self.name!r} has no noun")
        if self.says and (self.kind == "choice") != bool(self.choices):
            raise ValueError(f"argument {self.name!r}: choices go with kind choice")
        return self

    def takes(self) -> Wants | Says:
        """Return the argument."""
        if self.entity:
            return Wants(self.entity, self.needs)
        drawn = _drawing(self.kind, self.draw, self.choices)
        low, high = {
            "integer": (self.draw.low, self.draw.high),
            "money": (self.draw.low * 100, self.draw.high * 100),
        }.get(self.kind, (0, 10**9))
        return Says(
            self.says, self.kind, lambda d, given: drawn(d), self.noun, choices=self.choices, low=low, high=high
        )


class TellSheet(_Part):
    """A field of an action's answer."""

    name: Name
    kind: Literal["id", "text", "money", "date", "clock", "integer", "choice"]
    fact: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$")]
    noun: Text


class TestSheet(_Part):
    """A unit test of an action, in rows that have names: what the call changes, and nothing else, or that it refuses.

    Attributes:
        rows: by the test's own names: the entity and the columns that matter; a column with a parent names a row.
        given: the arguments; one that takes a row names it.
        changes: columns of those rows afterwards.
        added: new rows, by the columns that matter.
        removed: names of rows that are gone.
        answer: fields of the answer.
        refused: whether the call must be refused; then nothing may change.
    """

    name: Text
    rows: dict[Name, dict[str, str | int]]
    given: dict[Name, str | int]
    changes: dict[Name, dict[str, str | int]] = {}
    added: tuple[dict[str, str | int], ...] = ()
    removed: tuple[Name, ...] = ()
    answer: dict[str, str | int] = {}
    refused: bool = False

    @model_validator(mode="after")
    def _asks_for_something(self) -> TestSheet:
        if self.refused == bool(self.changes or self.added or self.removed):
            raise ValueError("a test has changes, added or removed rows, or is refused")
        for name, row in self.rows.items():
            if "entity" not in row:
                raise ValueError(f"row {name!r} has no entity")
        return self


class ActionSheet(_Part):
    """Something that changes the world. `code` defines run(db, given) and, where it may refuse, pre(db, given)."""

    name: Name
    description: Text
    takes: tuple[ArgumentSheet, ...] = Field(min_length=1)
    asks: tuple[Text, ...] = Field(min_length=1)
    done: Text
    tells: tuple[TellSheet, ...] = Field(min_length=1)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = Field(min_length=1)
    after: dict[str, dict[str, str | int]] = {}
    code: Annotated[str, Field(min_length=1, max_length=8000)]
    tests: tuple[TestSheet, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_tested(self) -> ActionSheet:
        names = [item.name for item in self.takes]
        if len(set(names)) != len(names):
            raise ValueError(f"action {self.name!r} names an argument twice")
        if all(test.refused for test in self.tests):
            raise ValueError(f"action {self.name!r} has no test of a call that is done")
        may_refuse = "def pre" in self.code or any(item.needs for item in self.takes)
        if may_refuse and not any(test.refused for test in self.tests):
            raise ValueError(f"action {self.name!r} may refuse, and no test shows it")
        for ask in self.asks:
            if unknown := sorted(set(re.findall(r"{(\w+)}", ask)) - set(names)):
                raise ValueError(f"action {self.name!r} asks with {{{unknown[0]}}}, which it does not take")
        return self

    def action(self, rules: Rules) -> Action:
        """Return the action; its rules run in the sandbox."""
        tells = tuple(Tells(tell.name, tell.kind, tell.fact, tell.noun) for tell in self.tells)
        pre: Callable[[Any, Given], str] | None = None
        if "def pre" in self.code:
            pre = lambda db, given: rules.pre(self.name, self.code, db, given)  # noqa: E731 - one line of two
        return Action(
            self.name,
            self.description,
            {item.name: item.takes() for item in self.takes},
            lambda db, given: rules.run(self.name, self.code, tells, db, given),
            self.asks,
            self.done,
            tells=tells,
            reads=self.reads,
            writes=self.writes,
            pre=pre,
            after=self.after,
        )


class DomainSheet(_Part):
    """A whole domain.

    Attributes:
        person: name of the entity whose rows are the users.
        words: lists that texts are drawn from, besides those that all domains share (first, last, street, city, mail).
        entities: parents before children.
    """

    name: Name
    title: Text
    role: Text
    person: str
    words: dict[Name, tuple[Text, ...]] = {}
    greetings: tuple[Text, ...] = Field(min_length=1)
    entities: tuple[EntitySheet, ...] = Field(min_length=2, max_length=12)
    actions: tuple[ActionSheet, ...] = Field(min_length=1, max_length=24)

    @model_validator(mode="after")
    def _draws_from_lists(self) -> DomainSheet:
        known = set(self.words) | set(_shared_words())
        for where, kind, drawn in self._draws():
            if kind == "text" and sum(map(bool, (drawn.words, drawn.digits, drawn.copy_of))) != 1:
                raise ValueError(f"{where} is text: it needs one of draw.words, draw.digits and draw.copy")
            if drawn.words and drawn.words not in known:
                raise ValueError(f"{where} draws from {drawn.words!r}; there are {', '.join(sorted(known))}")
        return self

    def _draws(self) -> Iterator[tuple[str, str, DrawSheet]]:
        for entity in self.entities:
            yield from ((f"{entity.name}.{column.name}", column.kind, column.draw) for column in entity.columns)
        for action in self.actions:
            yield from ((f"{action.name}.{item.name}", item.kind, item.draw) for item in action.takes if item.says)

    def domain(self, sandbox: Sandbox) -> Domain:
        """Return the domain. Nothing of it runs outside of the sandbox.

        Raises:
            PluginError: parts that do not go together, by place.
        """
        blueprint = Blueprint(tuple(entity.entity(self.person) for entity in self.entities), self.person)
        rules = Rules(sandbox, self.name, blueprint)
        return Domain(
            name=self.name,
            title=self.title,
            role=self.role,
            blueprint=blueprint,
            actions=tuple(action.action(rules) for action in self.actions),
            words={**_shared_words(), **self.words},
            greetings=self.greetings,
            today=TODAY,
        )


def read_sheet(path: Path) -> DomainSheet:
    """Return the sheet in a JSON file.

    Raises:
        ConfigError: there is no such file.
        ArtifactError: it is no sheet; with the first places that are wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise ConfigError(f"cannot be read: {cause.strerror}", where=str(path), fix="stackloom env write") from cause
    try:
        return DomainSheet.model_validate_json(text)
    except ValidationError as cause:
        raise ArtifactError(f"is no domain: {'; '.join(list(mistakes(cause))[:3])}", where=str(path)) from None


def mistakes(cause: ValidationError) -> Iterator[str]:
    """Yield what is wrong with a sheet, each with its place."""
    for error in cause.errors():
        yield f"{dotted(error['loc']) or 'the document'}: {explain(error, DomainSheet)}"


@cache
def _shared_words() -> dict[str, Any]:
    return tomllib.loads(SHARED.read_text(encoding="utf-8"))


def _drawing(kind: str, sheet: DrawSheet, choices: tuple[str, ...]) -> Callable[[Draw], Any]:
    def drawn(d: Draw) -> Any:
        match kind:
            case "choice":
                return d.rng.choice(choices)
            case "integer":
                return d.rng.randrange(sheet.low, sheet.high + 1, sheet.step)
            case "money":
                return d.money(sheet.low, sheet.high, step=100 * sheet.step)
            case "date":
                return d.day(sheet.low, sheet.high)
            case "clock":
                return d.clock(sheet.low, sheet.high)
        if sheet.words:
            return d.one(sheet.words)
        if sheet.digits:
            return d.digits(sheet.digits)
        column, _, name = sheet.copy_of.partition(".")
        return d.parent(column)[name]

    return drawn
