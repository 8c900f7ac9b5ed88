"""Tools of a world: typed facts in, typed facts out, conditions before and after, one transaction per call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from stackloom.core.chat import Tool
from stackloom.core.errors import EngineError
from stackloom.core.slots.environment import ToolError
from stackloom.environments.entities import Row
from stackloom.environments.values import Kind, Value, argument, check_arguments, json_schema, parse, show
from stackloom.environments.world import View, World

Arguments: TypeAlias = dict[str, Value]
Form: TypeAlias = Literal["lookup", "details", "field", "count", "tally", "edit", "action"]


@dataclass(frozen=True)
class Fact:
    """A typed value that somebody knows: ("order.id", "RO-48213")."""

    type: str
    value: Value


@dataclass(frozen=True)
class Parameter:
    """One argument; all are required.

    Attributes:
        name: as the agent passes it.
        kind: how it is written (see `values`).
        fact: the type of what it holds.
        description: for the agent.
        entity: name of the entity whose id it holds; empty for anything else.
        table: of that entity.
        said: whether it is the person's own wish, not something to look up.
        noun: how people call it.
        choices, low, high: bounds.
    """

    name: str
    kind: Kind
    fact: str
    description: str
    entity: str = ""
    table: str = ""
    said: bool = False
    noun: str = ""
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 10**9

    @property
    def key(self) -> str:
        """Under which name a tool's own code finds it: "order" holds the row that order_id names."""
        return self.name.removesuffix("_id") if self.table else self.name


@dataclass(frozen=True)
class Output:
    """One field of an answer, with the type of the fact that it tells."""

    name: str
    kind: Kind
    fact: str
    noun: str = ""


@dataclass(frozen=True)
class WorldTool:
    """A tool.

    Attributes:
        name, description: for the agent.
        form: what it does in general: finds rows, shows one or one field of it, counts all of a parent's rows or those
            of one choice, edits a column, or acts.
        parameters, outputs: in order.
        many: what a list of answers is called; empty for a tool with one answer.
        reads, writes: tables that it may touch.
        pre: why a call is refused, or "" - after arguments are checked and the rows that they name are loaded.
        run: does it and returns one answer, or a list of them with `many`.
        post: whether what must hold afterwards does.
        entity: what it is about.
        by: columns that a lookup looks at.
        column: that an edit changes.
    """

    name: str
    description: str
    form: Form
    parameters: tuple[Parameter, ...]
    outputs: tuple[Output, ...]
    run: Callable[[View, dict[str, Any]], Any] = field(repr=False)
    pre: Callable[[View, dict[str, Any]], str] = field(default=lambda db, given: "", repr=False)
    post: Callable[[View, dict[str, Any], Any], bool] = field(default=lambda db, given, out: True, repr=False)
    many: str = ""
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    entity: str = ""
    by: tuple[str, ...] = ()
    column: str = ""

    @cached_property
    def requires(self) -> frozenset[str]:
        """Types of the facts that a call needs, the person's own wishes left out."""
        return frozenset(parameter.fact for parameter in self.parameters if not parameter.said)

    @cached_property
    def provides(self) -> frozenset[str]:
        """Types of the facts that an answer tells."""
        return frozenset(output.fact for output in self.outputs)

    @cached_property
    def shown(self) -> Tool:
        """The tool as an agent sees it."""
        properties = {
            item.name: json_schema(item.kind, item.description, choices=item.choices, low=item.low, high=item.high)
            for item in self.parameters
        }
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return Tool(self.name, self.description, schema)

    @cached_property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of an answer."""
        kinds = {"integer": "integer"}
        properties = {output.name: {"type": kinds.get(output.kind, "string")} for output in self.outputs}
        one = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        if not self.many:
            return one
        return {
            "type": "object",
            "properties": {self.many: {"type": "array", "items": one}},
            "required": [self.many],
            "additionalProperties": False,
        }

    def parse(self, arguments: Mapping[str, Any]) -> Arguments:
        """Return arguments as the world stores them.

        Raises:
            ToolError: they do not fit the schema.
        """
        check_arguments((item.name for item in self.parameters), arguments, self.name)
        return {
            item.name: parse(
                item.kind, arguments[item.name], item.name, choices=item.choices, low=item.low, high=item.high
            )
            for item in self.parameters
        }

    def write(self, arguments: Mapping[str, Value]) -> dict[str, Any]:
        """Return stored arguments as an agent passes them."""
        return {item.name: argument(item.kind, arguments[item.name]) for item in self.parameters}


@dataclass(frozen=True)
class Outcome:
    """What a call did.

    Attributes:
        answers: rows of stored values by output name; one for a tool without `many`.
        text: what the agent reads.
        view: what it touched.
    """

    answers: tuple[Row, ...]
    text: str
    view: View


def call(world: World, tool: WorldTool, arguments: Mapping[str, Any], today: str) -> Outcome:
    """Call a tool: one transaction, which leaves no trace if anything is refused or breaks.

    Args:
        arguments: as the agent passes them.

    Raises:
        ToolError: the agent's mistake, in words for it.
        EngineError: the tool's own mistake: an undeclared table, a false post-condition, an answer out of shape.
    """
    given = tool.parse(arguments)
    with world.transaction():
        view = View(world, tool.reads, tool.writes, today)
        bound: dict[str, Any] = {}
        for item in tool.parameters:
            value: Any = given[item.name]
            if item.table:
                value = view.get(item.table, str(given[item.name]))
                if value is None:
                    raise ToolError(f"there is no {item.entity.replace('_', ' ')} {str(given[item.name])[:40]!r}")
            bound[item.key] = value
        if refusal := tool.pre(view, bound):
            raise ToolError(refusal)
        result = tool.run(view, bound)
        answers = tuple(result) if tool.many else (result,)
        if not tool.post(view, bound, result):
            raise EngineError(f"the post-condition of tool {tool.name!r} does not hold")
        text = _render(tool, answers)
    return Outcome(answers, text, view)


def _render(tool: WorldTool, answers: tuple[Row, ...]) -> str:
    names = [output.name for output in tool.outputs]
    rows = []
    for answer in answers:
        if set(answer) != set(names):
            raise EngineError(f"tool {tool.name!r} answers {sorted(answer)}, its schema says {sorted(names)}")
        rows.append({output.name: show(output.kind, answer[output.name]) for output in tool.outputs})
    return json.dumps({tool.many: rows} if tool.many else rows[0], ensure_ascii=False)
