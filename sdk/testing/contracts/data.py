"""What every data plugin must hold."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.slots.data import Example
from stackloom.testing.contracts.plugin import PluginContract
from stackloom.testing.tokenizer import tiny_tokenizer

SEVERAL = 5


class DataContract(PluginContract):
    """The laws of slot `data`.

    Attributes:
        trained: for the first examples, the text under the loss mask as the tokenizer decodes it; empty checks none.

    Example:
        >>> class TestMySums(DataContract):
        ...     plugin = "data.my-sums"
        ...     options = {"examples": 10}
        ...     trained = ["1 + 1 = 2"]
    """

    trained: ClassVar[Sequence[str]] = ()

    @classmethod
    def bad_options(cls, folder: Path) -> list[dict[str, Any]]:
        """Return options, over those of the class, whose files in `folder` the plugin must refuse."""
        return []

    @classmethod
    def tokenizer(cls) -> Any:
        """Return the tokenizer that the plugin is built with."""
        return tiny_tokenizer()

    @classmethod
    def data(cls, **changes: Any) -> Any:
        """Build the component."""
        return cls.component(cls.tokenizer(), **changes)

    def test_examples_are_tokens_with_a_mask_of_their_length(self) -> None:
        data, vocabulary = self.data(), len(self.tokenizer())
        assert len(data) > 0
        for index in range(len(data)):
            example = data[index]
            assert isinstance(example, Example)
            assert len(example.input_ids) == len(example.loss_mask)
            assert all(type(token) is int and 0 <= token < vocabulary for token in example.input_ids)
            assert all(type(trained) is bool for trained in example.loss_mask)

    def test_every_example_trains_something(self) -> None:
        """The first token is never predicted and does not count."""
        data = self.data()
        assert [index for index in range(len(data)) if not any(data[index].loss_mask[1:])] == []

    def test_mask_lies_on_what_the_model_should_write(self) -> None:
        data, tokenizer = self.data(), self.tokenizer()
        for index, text in enumerate(self.trained):
            tokens, mask = data[index]
            assert tokenizer.decode([token for token, trained in zip(tokens, mask, strict=True) if trained]) == text

    def test_index_past_the_end_is_an_index_error(self) -> None:
        data = self.data()
        with pytest.raises(IndexError):
            data[len(data)]

    def test_examples_are_the_same_in_any_order_and_in_every_run(self) -> None:
        first, second = self.data(), self.data()
        forwards = [first[index] for index in range(len(first))]
        random.seed(1)
        backwards = [second[index] for index in reversed(range(len(first)))]
        assert backwards[::-1] == forwards
        assert [first[index] for index in range(len(first))] == forwards

    def test_global_random_state_is_left_alone(self) -> None:
        before = random.getstate()
        data = self.data()
        for index in range(min(SEVERAL, len(data))):
            data[index]
        assert random.getstate() == before

    def test_an_example_is_the_callers_own(self) -> None:
        data = self.data()
        expected = Example(list(data[0].input_ids), list(data[0].loss_mask))
        data[0].input_ids.clear()
        assert data[0] == expected

    def test_problems_are_sentences(self) -> None:
        problems = self.data().problems()
        assert all(isinstance(problem, str) and problem for problem in problems)

    def test_bad_files_are_refused_by_a_typed_error(self, tmp_path: Path) -> None:
        for options in self.bad_options(tmp_path):
            with pytest.raises((ConfigError, ArtifactError)):
                self.data(**options)
