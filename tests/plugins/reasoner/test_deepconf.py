"""`reasoner.deepconf`: the slot's laws; those of thinking are in test_thinking_laws."""

from typing import ClassVar

from stackloom.core.devices import find_device
from stackloom.core.fit import FitContext
from stackloom.plugins.reasoner.deepconf.config import DeepConfConfig
from stackloom.testing import ReasonerContract, tiny_shape


class TestDefaults(ReasonerContract):
    plugin = "reasoner.deepconf"


class TestWithOptions(ReasonerContract):
    plugin = "reasoner.deepconf"
    options: ClassVar = {"width": 5, "trace_score": "tail", "group": 3}


def test_plan_refuses_the_evaluate_stage_whose_engine_reports_no_likeliest_tokens():
    context = FitContext(
        model=tiny_shape(),
        device=find_device("cpu"),
        dtype="float32",
        stage="evaluate",
        stage_options={"temperature": 1.0},
    )
    assert not DeepConfConfig().fit(context).ok
