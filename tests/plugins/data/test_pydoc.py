"""`data.pydoc`: the slot's laws, the splits, and how documents become examples."""

import platform
import sys
from pydoc_data.topics import topics
from types import ModuleType
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.errors import ConfigError
from stackloom.plugins.data.pydoc.config import PydocConfig
from stackloom.plugins.data.pydoc.pydoc import split_of
from stackloom.testing import DataContract, tiny_tokenizer

END = "<|im_end|>"


class TestPydoc(DataContract):
    plugin = "data.pydoc"
    options: ClassVar = {"held_out": 0.0, "topics": ["b*"], "max_tokens": 300}

    @classmethod
    def bad_options(cls, folder):
        return [{"topics": ["no such topic"]}, {"held_out": 1.0}, {"split": "held-out"}]


def build(**options):
    return PydocConfig(**options).build(tiny_tokenizer())


def text(data):
    return data.tokenizer.decode([token for index in range(len(data)) for token in data[index].input_ids])


@pytest.fixture
def documents(monkeypatch):
    """Return a function that puts other topics in the place of Python's."""

    def put(found):
        module = ModuleType("pydoc_data.topics")
        module.topics = found
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)

    return put


def read(**options):
    config = PydocConfig(**options)
    tokenizer = tiny_tokenizer()
    data = config.build(tokenizer)
    return [tokenizer.decode(data[index].input_ids) for index in range(len(data))], data


def test_text_is_pythons_own():
    examples, data = read(held_out=0.0, topics=("booleans",), max_tokens=100)
    assert "".join(examples) == topics["booleans"].strip() + END
    assert [len(data[index].input_ids) for index in range(len(data) - 1)] == [100] * (len(data) - 1)
    assert all(all(data[index].loss_mask) for index in range(len(data)))


def test_splits_share_no_text_and_together_are_everything():
    parts = {split: set(_names(split)) for split in ("train", "held-out")}
    assert not parts["train"] & parts["held-out"]
    assert len(parts["train"] | parts["held-out"]) == len(topics)
    assert 0 < len(parts["held-out"]) < len(parts["train"])
    whole = {split: "".join(read(split=split, max_tokens=10**6)[0]) for split in parts}
    doubles = {name for name in topics if list(topics.values()).count(topics[name]) > 1}
    for name in set(topics) - doubles:
        home = "train" if name in parts["train"] else "held-out"
        other = "held-out" if home == "train" else "train"
        assert topics[name].strip() + END in whole[home], name
        assert topics[name].strip() + END not in whole[other], name


def _names(split):
    return [name for name in topics if split_of(name, 0.1) == split]


@given(st.text(max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_larger_share_only_adds_to_the_held_out_topics(name, one, two):
    small, large = sorted((one, two))
    assert not (split_of(name, small) == "held-out" and split_of(name, large) == "train")
    assert split_of(name, 0.0) == "train"
    assert split_of(name, 1.0) == "held-out"


def test_splits_do_not_move_between_versions():
    names = ["assert", "booleans", "class", "lambda", "numbers", "try", "yield", "with", "import", "del"]
    assert [name for name in names if split_of(name, 0.3) == "held-out"] == [
        "assert",
        "booleans",
        "class",
        "try",
        "with",
    ]


def test_topics_with_one_text_are_taken_once_and_named(documents):
    documents({"b": "Same.\n", "a": "Same.", "c": "Other.", "d": " \n"})
    examples, data = read(held_out=0.0)
    assert examples == [f"Same.{END}", f"Other.{END}"]
    assert "topic 'b' left out: the same text as 'a'" in data.problems()


def test_rest_of_one_token_is_left_out_and_counted(documents):
    documents({"a": "123456", "b": "1234567"})
    examples, data = read(held_out=0.0, max_tokens=6)
    assert examples == ["123456", "123456", f"7{END}"]
    assert data.problems()[-1] == "1 rests of one token left out"


def test_order_is_by_name(documents):
    documents({"z": "last", "a": "first"})
    assert read(held_out=0.0)[0] == [f"first{END}", f"last{END}"]


def test_version_is_the_first_problem():
    first = build(topics=("booleans",), held_out=0.0).problems()[0]
    assert first.startswith(f"text of Python {platform.python_version()}, 1 topics")


def test_tokenizer_that_adds_its_own_end_gets_one_end(documents):
    documents({"a": "abc"})
    tokenizer = tiny_tokenizer()
    plain = tokenizer.encode

    class Ends:
        eos_token_id = tokenizer.eos_token_id

        def encode(self, text, *, add_special_tokens=True):
            return plain(text) + ([self.eos_token_id] if add_special_tokens else [])

    class Endless(Ends):
        eos_token_id = None

        def encode(self, text, *, add_special_tokens=True):
            return plain(text)

    config = PydocConfig(held_out=0.0)
    assert tokenizer.decode(config.build(Ends())[0].input_ids) == f"abc{END}"
    assert tokenizer.decode(config.build(Endless())[0].input_ids) == "abc"


def test_python_without_the_topics_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigError, match="without pydoc_data"):
        build()


def test_too_small_examples_are_refused():
    with pytest.raises(ConfigError):
        TestPydoc.config(max_tokens=1)
