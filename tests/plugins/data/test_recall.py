"""`data.recall`: the slot's laws, and that every answer is what the sequence said."""

from itertools import pairwise
from typing import ClassVar

import pytest

from stackloom.core.errors import ConfigError
from stackloom.plugins.data.recall.config import RecallConfig
from stackloom.testing import DataContract, tiny_tokenizer


class TestAssociative(DataContract):
    plugin = "data.recall"
    options: ClassVar = {"examples": 6, "length": 40}

    @classmethod
    def bad_options(cls, folder):
        return [
            {"pairs": 65, "length": 1000},
            {"queries": 9},
            {"length": 31},
            {"keys": 200, "values": 200},
            {"task": "needle", "length": 20},
        ]


class TestNeedle(DataContract):
    plugin = "data.recall"
    options: ClassVar = {"task": "needle", "examples": 3, "length": 400}


def build(**options):
    return RecallConfig(**{"examples": 20, "length": 96, "pairs": 8, "queries": 5} | options).build(tiny_tokenizer())


@pytest.mark.parametrize("task", ["associative", "overwrite", "noise"])
def test_the_answer_is_the_last_value_that_the_key_was_bound_to(task):
    for example in build(task=task):
        tokens, asked = example.input_ids, example.loss_mask.index(True) - 1
        assert len(tokens) == 96
        bound = {}
        for key, value in pairwise(tokens[:asked]):
            if key < 64 and 64 <= value < 128:
                bound[key] = value
        questions = list(zip(tokens[asked::2], tokens[asked + 1 :: 2], strict=True))
        assert len(dict(questions)) == 5
        assert all(bound[key] == answer for key, answer in questions)


def test_overwriting_changes_most_answers():
    changed = 0
    for example in build(task="overwrite"):
        first = {}
        for key, value in pairwise(example.input_ids):
            if key < 64:
                first.setdefault(key, value)
        asked = example.loss_mask.index(True) - 1
        pairs = zip(example.input_ids[asked::2], example.input_ids[asked + 1 :: 2], strict=True)
        changed += sum(first[key] != answer for key, answer in pairs)
    assert changed > 0.9 * 20 * 5


def test_the_needle_is_in_the_text_and_the_question_repeats_it():
    tokenizer = tiny_tokenizer()
    for example in build(task="needle", length=500):
        text = tokenizer.decode(example.input_ids)
        answer = tokenizer.decode([t for t, asked in zip(*example, strict=True) if asked])
        assert len(example.input_ids) == 500
        assert text.endswith(answer)
        question = text[: -len(answer)].rpartition("\n")[2]
        assert text.count(question + answer) == 2


def test_splits_and_seeds_share_no_draws():
    draws = [build(**options) for options in ({}, {"split": "held-out"}, {"seed": 1})]
    seen = [tuple(example.input_ids) for data in draws for example in data]
    assert len(set(seen)) == len(seen)


def test_too_many_symbols_for_the_tokenizer_are_refused():
    with pytest.raises(ConfigError, match="need 417 tokens, the tokenizer has 258"):
        build(keys=200, values=200)
