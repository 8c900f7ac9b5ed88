"""Options of `environment.domain-graph`."""

from __future__ import annotations

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option


class DomainGraphConfig(ComponentConfig):
    """Tasks in small databases with tools, grown from a domain's dependency graph.

    Example:
        >>> DomainGraphConfig(tools=4, low=2, high=3, domains=["retail"], unseen_domains=["airline"]).seed
        0
    """

    seed: int = option(0, "draws the environments; another seed gives other ones of the same splits", ge=0, lt=2**63)
    domains: tuple[str, ...] = option(
        ("airline", "banking", "calendar", "retail", "ticketing"),
        "domains of both splits, in turn; their persons and worlds differ between the splits",
        min_length=1,
    )
    unseen_domains: tuple[str, ...] = option((), "domains of the held-out split alone")
    tools: int = option(24, "how many tools the agent sees", unit="tools", ge=3, le=60)
    low: int = option(
        0, "fewest calls of a golden chain; 0 with high = 0 lets tools decide: 4 to 8", ge=0, le=12, source="inferred"
    )
    high: int = option(0, "most calls of a golden chain", unit="calls", ge=0, le=12, source="inferred")
    compact: bool = option(True, "show one signature line per tool instead of its JSON Schema, for small models")
    withheld: float = option(
        0.0, "probability that a detail is told only when the agent asks for it", unit="fraction", ge=0, le=1
    )
    recovery: float = option(
        0.0, "share of demonstrations in which a call fails first and is then made rightly", unit="fraction", ge=0, le=1
    )
    tau: float = option(0.5, "threshold of the decision to add another golden chain", source="inferred", ge=0, le=1)
    complexity: float = option(40.0, "complexity c* at which that decision is even", source="inferred", gt=0)
    attempts: int = option(40, "most attempts at finding another golden chain", source="inferred", ge=1, le=1000)
    breadth: int = option(
        10, "most tools that one chain's neighbourhood adds", unit="tools", source="inferred", ge=1, le=60
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> DomainGraphConfig:
        both = self.domains + self.unseen_domains
        if twice := sorted({name for name in both if both.count(name) > 1}):
            raise ValueError(f"domains named twice, so that trained and unseen would mix: {', '.join(twice)}")
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low is at most high")
        return self
