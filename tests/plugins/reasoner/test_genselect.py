"""`reasoner.genselect`: the slot's laws; those of thinking are in test_thinking_laws."""

from typing import ClassVar

from stackloom.testing import ReasonerContract


class TestDefaults(ReasonerContract):
    plugin = "reasoner.genselect"


class TestWithOptions(ReasonerContract):
    plugin = "reasoner.genselect"
    options: ClassVar = {"width": 3}
