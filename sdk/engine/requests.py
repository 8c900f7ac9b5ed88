"""Checks a request before it may join a batch, so that a bad one never fails its neighbours."""

from __future__ import annotations

import math
from typing import TypeGuard

from stackloom.core.errors import ConfigError
from stackloom.core.generation import ContextFull, Request, Sampling

TOP_LOGPROBS = 20
"""Most of the likeliest tokens that a request may ask for."""


def check_request(request: Request, *, vocabulary: int, context: int | None, where: str = "request") -> None:
    """Refuse a request that cannot be computed.

    Args:
        request: what the caller asks for.
        vocabulary: number of token ids that the model has.
        context: most tokens of prompt and continuation together; None where the model has no limit.
        where: name of the request in error messages.

    Raises:
        ContextFull: the prompt leaves no room in the context.
        ConfigError: an empty prompt, an unknown token id, or sampling options out of range.
    """
    ids = request.input_ids
    if not ids:
        raise ConfigError("an empty prompt", where=f"{where}.input_ids", fix="give at least one token")
    for place, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < vocabulary:
            raise ConfigError(
                f"{token!r} is no token id of this model",
                where=f"{where}.input_ids[{place}]",
                fix=f"ids are integers from 0 to {vocabulary - 1}; use the model's own tokenizer",
            )
    if context is not None and len(ids) >= context:
        raise ContextFull(
            f"a prompt of {len(ids)} tokens leaves no room in a context of {context}",
            where=f"{where}.input_ids",
            fix="shorten the prompt",
        )
    if not isinstance(request.key, str):
        raise ConfigError(f"key is {type(request.key).__name__}, not text", where=f"{where}.key")
    if type(request.top_logprobs) is not int or not 0 <= request.top_logprobs <= TOP_LOGPROBS:
        raise ConfigError(
            f"top_logprobs is {request.top_logprobs!r}", where=f"{where}.top_logprobs", fix=f"0 to {TOP_LOGPROBS}"
        )
    check_sampling(request.sampling, where=f"{where}.sampling")


def check_sampling(sampling: Sampling, *, where: str = "sampling") -> None:
    """Refuse sampling options out of range.

    Raises:
        ConfigError: naming the option.
    """
    bounds = (
        ("temperature", _number(sampling.temperature) and sampling.temperature >= 0, "0 or more"),
        ("top_p", _number(sampling.top_p) and 0 < sampling.top_p <= 1, "above 0, at most 1"),
        ("top_k", type(sampling.top_k) is int and sampling.top_k >= 0, "a whole number, 0 for all tokens"),
        ("max_tokens", type(sampling.max_tokens) is int and sampling.max_tokens >= 1, "a whole number, at least 1"),
        ("seed", type(sampling.seed) is int, "a whole number"),
        ("min_p", _within(sampling.min_p, 0, 1), "0 to 1"),
        ("presence_penalty", _within(sampling.presence_penalty, -100, 100), "-100 to 100"),
        ("frequency_penalty", _within(sampling.frequency_penalty, -100, 100), "-100 to 100"),
        ("repetition_penalty", _within(sampling.repetition_penalty, 0.01, 100), "0.01 to 100"),
        ("json_schema", isinstance(sampling.json_schema, str), "JSON, as text"),
        (
            "stop",
            isinstance(sampling.stop, tuple) and all(isinstance(stop, str) and stop for stop in sampling.stop),
            "a tuple of texts that are not empty",
        ),
    )
    for name, holds, allowed in bounds:
        if not holds:
            raise ConfigError(f"{name} is {getattr(sampling, name)!r}", where=f"{where}.{name}", fix=allowed)


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _within(value: object, low: float, high: float) -> bool:
    return _number(value) and low <= value <= high
