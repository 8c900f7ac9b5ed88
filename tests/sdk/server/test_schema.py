"""Requests made from the server's own OpenAPI description never find a 5xx."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.registry import open_registry
from stackloom.server.app import make_app
from stackloom.server.serving import Limits, Serving
from stackloom.thinking import HEAVY, make_reasoner

from .conftest import engine_for

pytestmark = pytest.mark.slow
EXAMPLES = 60


@pytest.fixture(scope="module")
def app(model, tokenizer, tmp_path_factory):
    with (
        engine_for(model, tokenizer) as engine,
        open_registry(home=tmp_path_factory.mktemp("home")) as registry,
    ):
        serving = Serving(
            "tiny",
            engine,
            HFChatTokenizer(tokenizer),
            Limits(max_tokens=4),
            lambda options: make_reasoner(registry, HEAVY, options),
        )
        yield make_app(serving)


def calls(app):
    """One way to make requests per operation, from right ones and from wrong ones."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for found in schema.get_all_operations():
        for mode in GenerationMode:
            yield found.ok(), mode


def test_no_request_is_answered_with_a_5xx(app):
    seen = Counter()

    for operation, mode in calls(app):

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @seed(0)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "tiny"  # another name is a 404, which says nothing of the rest
            response = case.call()
            seen[case.path, response.status_code // 100] += 1
            case.validate_response(response, checks=[not_a_server_error])

        try:
            check()
        except Unsatisfiable:  # an operation without parameters has no wrong requests
            assert mode is GenerationMode.NEGATIVE
    assert all(seen["/v1/chat/completions", kind] for kind in (2, 4))
    assert all(seen["/v1/completions", kind] for kind in (2, 4))
