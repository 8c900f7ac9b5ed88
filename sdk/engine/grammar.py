"""Text that follows a JSON Schema: which tokens may come next, as llguidance knows it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stackloom.core.errors import ConfigError, EngineError

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes it; a model that may write any white space may write nothing else."""


class Grammars:
    """Makes grammars for one model's tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
        vocabulary: number of token ids that the model has.
        end_tokens: ids that end a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_tokens: Iterable[int]) -> None:
        self._tokenizer, self._vocabulary, self._end_tokens = tokenizer, vocabulary, sorted(end_tokens)

    def follow(self, schema: str, *, where: str) -> Grammar:
        """Return a grammar at its beginning.

        Raises:
            ConfigError: no JSON Schema, or one that nothing or nobody here can follow; or llguidance is not installed.
        """
        llguidance, tokens = self._tokens
        try:
            json.loads(schema)
            text = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=SPACING)
        except (ValueError, RecursionError) as cause:
            raise ConfigError(f"is no JSON Schema: {cause}", where=where) from None
        matcher = llguidance.LLMatcher(tokens, text, log_level=0)
        if matcher.is_error():
            reason = f"cannot be followed: {matcher.get_error()}"[:500]
            raise ConfigError(reason, where=where, fix="simplify the schema")
        return Grammar(matcher, self._vocabulary)

    @cached_property
    def _tokens(self) -> tuple[Any, Any]:
        """The library, and the model's tokens as it knows them; made at the first use, which takes a second."""
        try:
            import llguidance
            import llguidance.hf
        except ModuleNotFoundError:
            raise ConfigError(
                "text that follows a schema needs llguidance", where="json_schema", fix="pip install 'stackloom[serve]'"
            ) from None
        ends = self._end_tokens or None
        tokens = llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=ends)  # type: ignore[arg-type]
        return llguidance, tokens


class Grammar:
    """Where one text stands in its schema.

    Example:
        >>> grammar = Grammars(tokenizer, 260, [257]).follow('{"enum": ["a", "b"]}', where="json_schema")
        >>> tokenizer.decode(grammar.allowed().nonzero()[0])
        '"'
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """Return which tokens may come next, bool (V,).

        Raises:
            EngineError: none may.
        """
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if not bits[: self._vocabulary].any():
            raise EngineError("no token of this model can go on with the schema", where="json_schema")
        return torch.from_numpy(bits[: self._vocabulary].astype(bool))

    def accept(self, token: int) -> None:
        """Take the next token, one of those that are allowed.

        Raises:
            EngineError: the grammar has grown beyond llguidance's limits.
        """
        if not self._matcher.consume_token(token):
            raise EngineError(f"the schema cannot be followed further: {self._matcher.get_error()}"[:500])
