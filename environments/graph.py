"""The dependency graph of a domain's tools, and what keeps an environment closed under it."""

from __future__ import annotations

from collections.abc import Iterable, Set

from stackloom.core.errors import PluginError
from stackloom.environments.domain import Domain
from stackloom.environments.tools import WorldTool


class Graph:
    """Edge u -> t: a fact that `u` tells is one that `t` needs.

    Attributes:
        tools: by name.
        told_by_person: types of facts that a person may say: known columns, known ids, whatever they wish.
        above: per tool, those that tell something it needs.
        below: per tool, those that need something it tells.

    Raises:
        PluginError: a fact that nobody tells, a tool without outputs, a cycle that no person can enter; by name.

    Example:
        >>> graph = Graph(domain)
        >>> "list_customer_orders" in graph.below["find_customer_by_email"]
        True
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.tools: dict[str, WorldTool] = dict(domain.tools)
        if not self.tools:
            raise PluginError("the domain has no tools", where=domain.name)
        self.told_by_person = frozenset(
            [
                entity.fact(column.name)
                for entity in domain.blueprint.entities
                for column in entity.columns
                if not column.parent and (column.known or column.choices)
            ]
            + [entity.id_fact for entity in domain.blueprint.entities if entity.known_id]
        )
        self.below: dict[str, frozenset[str]] = {}
        self.above: dict[str, frozenset[str]] = {}
        for name, tool in self.tools.items():
            needed, told = tool.requires - self.told_by_person, tool.provides
            self.above[name] = frozenset(
                other for other, found in self.tools.items() if other != name and found.provides & needed
            )
            self.below[name] = frozenset(
                other
                for other, found in self.tools.items()
                if other != name and told & (found.requires - self.told_by_person)
            )
        self._check()

    def _check(self) -> None:
        for name, tool in self.tools.items():
            if not tool.outputs:
                raise PluginError("a tool without an output schema", where=f"{self.domain.name}.{name}")
        reached = closure(self.tools.values(), self.told_by_person)
        for name, tool in self.tools.items():
            if lost := tool.requires - reached:
                raise PluginError(
                    f"nobody who can be asked tells {', '.join(sorted(lost))}", where=f"{self.domain.name}.{name}"
                )

    def deps_ok(self, tool: WorldTool, known: Set[str], filled: Set[str]) -> bool:
        """Whether a tool may join an environment.

        Args:
            tool: the candidate.
            known: the environment's `closure`: types of facts that can be had in it.
            filled: tables that hold rows.
        """
        return tool.requires <= known and tool.reads - tool.writes <= filled

    def density(self, names: Set[str]) -> float:
        """Edges among these tools, over all that there could be."""
        edges = sum(len(self.below[name] & names) for name in names)
        return edges / (len(names) * (len(names) - 1)) if len(names) > 1 else 0.0


def closure(tools: Iterable[WorldTool], told: Set[str]) -> frozenset[str]:
    """Return every type of fact that can be had: said by the person, or told by a tool whose own needs can be had."""
    known, waiting = set(told), list(tools)
    while True:
        later = [tool for tool in waiting if not tool.requires <= known]
        if len(later) == len(waiting):
            return frozenset(known)
        for tool in waiting:
            if tool.requires <= known:
                known |= tool.provides
        waiting = later


def stranded(tools: Iterable[WorldTool], told: Set[str]) -> list[str]:
    """Return the names of tools that nobody can call, because nobody tells what they need."""
    tools = list(tools)
    known = closure(tools, told)
    return [tool.name for tool in tools if not tool.requires <= known]
