"""The next token of each sequence: greedy, or drawn by a number that its seed, key and position alone decide.

Shape legend: N sequences, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stackloom.core.errors import ArtifactError
from stackloom.core.generation import Sampling


def uniform(seed: int, key: str, position: int) -> float:
    """Return a number in [0, 1), a multiple of 2^-53: the first bits of sha256 over its three arguments.

    Example:
        >>> uniform(0, "a", 0) == uniform(0, "a", 0) != uniform(0, "a", 1)
        True
    """
    digest = hashlib.sha256(f"{seed}\x00{position}\x00{key}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


@dataclass(frozen=True)
class Choice:
    """How one sequence's next token is chosen.

    Attributes:
        sampling: its options.
        number: in [0, 1), decides the draw.
        read, written: the prompt's tokens and those that were generated; read where a penalty needs them.
        allowed: bool (V,), what a grammar allows; None for every token.
        likeliest: how many of the likeliest tokens to report.
    """

    sampling: Sampling
    number: float = 0.0
    read: Sequence[int] = ()
    written: Sequence[int] = ()
    allowed: Tensor | None = None
    likeliest: int = 0

    @property
    def penalizes(self) -> bool:
        """Whether tokens that were seen count less."""
        sampling = self.sampling
        return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0)

    def shape(self, logits_V: Tensor) -> Tensor:
        """Return the logits that the token is chosen by."""
        if not self.penalizes and self.allowed is None:
            return logits_V
        shaped_V, sampling = logits_V.clone(), self.sampling
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*self.read, *self.written}), device=shaped_V.device)
            old, rate = shaped_V[seen], sampling.repetition_penalty
            shaped_V[seen] = torch.where(old > 0, old / rate, old * rate)
        if self.written and (sampling.presence_penalty or sampling.frequency_penalty):
            times = Counter(self.written)
            counts = torch.tensor(list(times.values()), dtype=shaped_V.dtype, device=shaped_V.device)
            shaped_V[list(times)] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if self.allowed is not None:
            shaped_V[~self.allowed.to(shaped_V.device)] = -math.inf
        return shaped_V


@dataclass(frozen=True)
class Chosen:
    """A token, its natural log-probability at temperature 1 over all tokens, and the likeliest ones with theirs."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


def choose(logits_NV: Tensor, choices: Sequence[Choice], *, one_by_one: bool = False) -> list[Chosen]:
    """Choose one token per sequence.

    Args:
        logits_NV: any floating-point dtype.
        choices: per sequence.
        one_by_one: compute each row alone, so that a result does not depend on how many rows there are.

    Raises:
        ArtifactError: a logit is NaN or infinite.
    """
    if one_by_one and len(choices) > 1:
        return [found for row, one in enumerate(choices) for found in choose(logits_NV[row : row + 1], [one])]
    exact_NV = logits_NV.float()
    best_N, id_N = exact_NV.max(-1)
    ids: list[int] = id_N.tolist()
    total_N = (exact_NV - best_N[:, None]).exp_().sum(-1)
    if not bool((best_N.isfinite() & total_N.isfinite()).all()):
        raise ArtifactError("the model's logits are not finite", where="model", fix="check its weights for NaN")
    chosen_N, whole_N = best_N, best_N + total_N.log()
    if any(one.sampling.temperature or one.penalizes or one.allowed is not None for one in choices):
        for row, one in enumerate(choices):
            row_V = exact_NV[row]
            shaped_V = one.shape(row_V)
            if one.sampling.temperature:
                ids[row] = draw(shaped_V, one.sampling, one.number)
            elif shaped_V is not row_V:
                ids[row] = int(shaped_V.argmax())
        chosen_N = exact_NV.gather(1, torch.tensor(ids, device=exact_NV.device)[:, None])[:, 0]
    logprobs = (chosen_N - whole_N).tolist()
    return [
        Chosen(ids[row], logprobs[row], _likeliest(exact_NV[row], whole_N[row], one.likeliest))
        for row, one in enumerate(choices)
    ]


def _likeliest(logits_V: Tensor, whole: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    values, ids = logits_V.topk(min(count, len(logits_V)))
    return tuple(zip(ids.tolist(), (values - whole).tolist(), strict=True))


def draw(logits_V: Tensor, sampling: Sampling, number: float) -> int:
    """Return the token at `number` of the cumulative distribution: temperature first, then top-k, top-p, min-p.

    Args:
        logits_V: fp32; -inf for tokens that cannot come, of which there are fewer than all.
        sampling: temperature above 0.
        number: in [0, 1).
    """
    scaled_V = (logits_V.double() - logits_V.max().double()) / sampling.temperature
    if not sampling.top_k and sampling.top_p >= 1.0 and not sampling.min_p:
        return _invert(scaled_V.exp_(), number)
    shortlist = min(sampling.top_k or len(scaled_V), len(scaled_V))
    sorted_V, order_V = scaled_V.sort(descending=True, stable=True)
    weight_V = sorted_V[:shortlist].exp_()
    if sampling.top_p < 1.0:
        before_V = weight_V.cumsum(0) - weight_V
        weight_V = weight_V[before_V < sampling.top_p * weight_V.sum()]
    weight_V = weight_V[weight_V >= sampling.min_p]  # the likeliest weighs 1
    return int(order_V[_invert(weight_V, number)])


def _invert(weight_V: Tensor, number: float) -> int:
    """Return the first index whose cumulative weight exceeds `number` of the total; never one of weight zero."""
    cumulative_V = weight_V.cumsum(0)
    total = cumulative_V[-1]
    target = torch.minimum(total * number, torch.nextafter(total, torch.zeros_like(total)))
    return int(torch.searchsorted(cumulative_V, target, right=True))
