"""`environment.domain-graph`: the slot's laws."""

from typing import ClassVar

from stackloom.testing import EnvironmentContract


class TestDomainGraph(EnvironmentContract):
    plugin = "environment.domain-graph"
    options: ClassVar = {"tools": 6}
    sample = 5


class TestDomainGraphWithQuestionsAndFailures(EnvironmentContract):
    plugin = "environment.domain-graph"
    options: ClassVar = {"tools": 4, "low": 2, "high": 3, "withheld": 0.6, "recovery": 0.5}
    sample = 5
