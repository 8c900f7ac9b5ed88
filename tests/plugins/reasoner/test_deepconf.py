"""`reasoner.deepconf`: the slot's laws; those of thinking are in test_thinking_laws."""

from typing import ClassVar

from stackloom.testing import ReasonerContract


class TestDefaults(ReasonerContract):
    plugin = "reasoner.deepconf"


class TestWithOptions(ReasonerContract):
    plugin = "reasoner.deepconf"
    options: ClassVar = {"width": 5, "trace_score": "tail", "group": 3}
