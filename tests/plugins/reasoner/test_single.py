"""`reasoner.single`: the slot's laws, and that it spends one attempt."""

from stackloom.testing import ReasonerContract
from stackloom.testing.contracts.reasoner import Attempts


class TestSingle(ReasonerContract):
    plugin = "reasoner.single"

    def test_one_attempt_is_made(self):
        attempts = Attempts((None, "2"))
        assert self.solve(attempts).chosen == 0
        assert attempts.asked == [0]
