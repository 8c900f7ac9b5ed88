"""`reasoner.best-of-n`: the slot's laws; those of thinking are in test_thinking_laws."""

from typing import ClassVar

from stackloom.testing import ReasonerContract


class TestDefaults(ReasonerContract):
    plugin = "reasoner.best-of-n"


class TestWithOptions(ReasonerContract):
    plugin = "reasoner.best-of-n"
    options: ClassVar = {"width": 5, "weighted": True}
