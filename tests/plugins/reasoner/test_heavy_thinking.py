"""`reasoner.heavy-thinking`: the slot's laws; those of thinking are in test_thinking_laws."""

from typing import ClassVar

from stackloom.testing import ReasonerContract


class TestDefaults(ReasonerContract):
    plugin = "reasoner.heavy-thinking"


class TestWithOptions(ReasonerContract):
    plugin = "reasoner.heavy-thinking"
    options: ClassVar = {"rounds": (3, 2)}
