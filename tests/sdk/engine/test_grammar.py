"""Text that follows a schema is JSON that the schema accepts, whatever the model would rather say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import validate

from stackloom.core.errors import EngineError
from stackloom.core.generation import Request, Sampling
from stackloom.engine.engine import Engine
from stackloom.engine.grammar import Grammar, Grammars

LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.sampled_from(["red", "größe", 'quo"te', 7, -1.5]), min_size=1, max_size=3, unique=True).map(
        lambda words: {"enum": words}
    ),
    st.integers(0, 3).map(lambda most: {"type": "string", "maxLength": most}),
    st.just({"type": "integer", "minimum": 0, "maximum": 120}),
)


def objects(children):
    names = st.dictionaries(st.sampled_from(["a", "b c", "é"]), children, min_size=1, max_size=3)
    return names.map(
        lambda held: {
            "type": "object",
            "properties": held,
            "required": list(held),
            "additionalProperties": False,
        }
    )


def arrays(children):
    return children.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2})


SCHEMAS = st.recursive(LEAVES, lambda children: objects(children) | arrays(children), max_leaves=4)


@pytest.fixture(scope="module")
def engine(long_llama, tokenizer):
    with Engine(long_llama, tokenizer) as engine:
        yield engine


@settings(max_examples=25, deadline=None)
@given(SCHEMAS, st.sampled_from([0.0, 1.5]), st.integers(0, 9))
def test_a_random_model_writes_what_the_schema_accepts(engine, schema, temperature, seed):
    sampling = Sampling(temperature=temperature, max_tokens=400, seed=seed, json_schema=json.dumps(schema))
    (found,) = engine.generate_all([Request((1, 2, 3), sampling)])
    assert found.finish == "stop"
    validate(json.loads(found.text), schema)


def test_neighbours_with_other_schemas_and_none_keep_to_their_own(engine):
    schemas = ['{"enum": ["left"]}', "", '{"enum": ["right"]}']
    found = engine.generate_all([Request((1, 2), Sampling(max_tokens=9, json_schema=schema)) for schema in schemas])
    assert [found[0].text, found[2].text] == ['"left"', '"right"']
    assert found[1].finish == "length"


def test_a_grammar_that_breaks_ends_its_own_sequence_alone(engine, monkeypatch):
    class Broken(Grammar):
        def allowed(self):
            raise EngineError("no token of this model can go on")

    def follow(self, schema, *, where):
        return Broken(None, self._vocabulary)

    monkeypatch.setattr(Grammars, "follow", follow)
    generations = [
        engine._generation(Request((1, 2), Sampling(max_tokens=4, json_schema=schema))) for schema in ("{}", "")
    ]
    for generation in generations:
        engine._batch.submit(generation)
    while engine._batch.busy:
        engine._batch.step()
    assert isinstance(generations[0].error, EngineError)
    assert len(generations[1].completion.token_ids) == 4
