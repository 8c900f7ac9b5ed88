"""The next token of each sequence: greedy, or drawn by a number that its seed, key and position alone decide.

Shape legend: N sequences, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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


def choose(
    logits_NV: Tensor, draws: Sequence[tuple[Sampling, float]], *, one_by_one: bool = False
) -> tuple[list[int], list[float]]:
    """Choose one token per sequence.

    Args:
        logits_NV: any floating-point dtype.
        draws: per sequence, its options and a number in [0, 1) that decides the draw.
        one_by_one: compute each row alone, so that a result does not depend on how many rows there are.

    Returns:
        Token ids, and the natural log-probability of each at temperature 1 over all tokens.

    Raises:
        ArtifactError: a logit is NaN or infinite.
    """
    if one_by_one and len(draws) > 1:
        rows = [choose(logits_NV[row : row + 1], draws[row : row + 1]) for row in range(len(draws))]
        return [ids[0] for ids, _ in rows], [logprobs[0] for _, logprobs in rows]
    exact_NV = logits_NV.float()
    best_N, id_N = exact_NV.max(-1)
    ids: list[int] = id_N.tolist()
    weight_NV = (exact_NV - best_N[:, None]).exp_()
    total_N = weight_NV.sum(-1)
    if not bool((best_N.isfinite() & total_N.isfinite()).all()):
        raise ArtifactError("the model's logits are not finite", where="model", fix="check its weights for NaN")
    chosen_N = best_N
    if any(sampling.temperature for sampling, _ in draws):
        for row, (sampling, number) in enumerate(draws):
            if sampling.temperature:
                ids[row] = draw(exact_NV[row], sampling, number)
        chosen_N = exact_NV.gather(1, torch.tensor(ids, device=exact_NV.device)[:, None])[:, 0]
    return ids, (chosen_N - best_N - total_N.log()).tolist()


def draw(logits_V: Tensor, sampling: Sampling, number: float) -> int:
    """Return the token at `number` of the cumulative distribution: temperature first, then top-k, then top-p.

    Args:
        logits_V: fp32, finite.
        sampling: temperature above 0.
        number: in [0, 1).
    """
    scaled_V = (logits_V.double() - logits_V.max().double()) / sampling.temperature
    if not sampling.top_k and sampling.top_p >= 1.0:
        return _invert(scaled_V.exp_(), number)
    shortlist = min(sampling.top_k or len(scaled_V), len(scaled_V))
    sorted_V, order_V = scaled_V.sort(descending=True, stable=True)
    weight_V = sorted_V[:shortlist].exp_()
    if sampling.top_p < 1.0:
        before_V = weight_V.cumsum(0) - weight_V
        weight_V = weight_V[before_V < sampling.top_p * weight_V.sum()]
    return int(order_V[_invert(weight_V, number)])


def _invert(weight_V: Tensor, number: float) -> int:
    """Return the first index whose cumulative weight exceeds `number` of the total; never one of weight zero."""
    cumulative_V = weight_V.cumsum(0)
    total = cumulative_V[-1]
    target = torch.minimum(total * number, torch.nextafter(total, torch.zeros_like(total)))
    return int(torch.searchsorted(cumulative_V, target, right=True))
