"""The elementwise halves over many tensors: on a CPU by torch's foreach functions, which spare a dispatch per tensor.

Bit-equal to the functions of one tensor, which everything else goes through: kernels, float16 and bfloat16 state,
stochastic rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import NEAREST, accelerated_momentum_, descend_, momentum_

_WIDE = (torch.float32, torch.float64)


def momentum_each_(
    Gs: Sequence[Tensor],
    Ms: Sequence[Tensor],
    mu: float,
    nesterov: bool,
    Us: Sequence[Tensor],
    *,
    implementation: str = "reference",
) -> None:
    """`momentum_` of each (G, M, U).

    Args:
        Gs, Ms, Us: as many gradients, momenta and outputs; see `momentum_` for each.
        mu, nesterov, implementation: as in `momentum_`.

    Raises:
        ValueError: the lists are not of one length.
    """
    _check_lengths(Gs, Ms, Us)
    if _together(implementation, Gs, Ms):
        _blend(list(Gs), list(Ms), mu, nesterov, list(Us))
        return
    for G, M, U in zip(Gs, Ms, Us, strict=True):
        momentum_(G, M, mu, nesterov, U, implementation=implementation)


def accelerated_momentum_each_(
    Gs: Sequence[Tensor],
    Ms: Sequence[Tensor],
    averages: Sequence[Tensor],
    mu: float,
    nesterov: bool,
    coefficient: float,
    decay: float,
    seeds: Sequence[int],
    offsets: Sequence[int],
    Us: Sequence[Tensor],
    *,
    implementation: str = "reference",
) -> None:
    """`accelerated_momentum_` of each (G, M, average, seed, offset, U).

    Args:
        Gs, Ms, averages, seeds, offsets, Us: as many of each; see `accelerated_momentum_`.
        mu, nesterov, coefficient, decay, implementation: as there.

    Raises:
        ValueError: the lists are not of one length.
    """
    _check_lengths(Gs, Ms, averages, seeds, offsets, Us)
    if _together(implementation, Gs, Ms, averages) and all(seed == NEAREST for seed in seeds):
        differences = torch._foreach_sub(list(Gs), list(averages))
        augmented = torch._foreach_add(list(Gs), differences, alpha=coefficient)
        torch._foreach_add_(list(averages), differences, alpha=1 - decay)
        _blend(list(augmented), list(Ms), mu, nesterov, list(Us))
        return
    for G, M, average, seed, offset, U in zip(Gs, Ms, averages, seeds, offsets, Us, strict=True):
        accelerated_momentum_(
            G, M, average, mu, nesterov, coefficient, decay, seed, offset, U, implementation=implementation
        )


def descend_each_(
    Ws: Sequence[Tensor], updates: Sequence[Tensor], decay: float, rates: Sequence[float], *, implementation: str
) -> None:
    """`descend_` of each (W, update, rate).

    Args:
        Ws, updates, rates: as many of each; see `descend_`.
        decay, implementation: as there.

    Raises:
        ValueError: the lists are not of one length.
    """
    _check_lengths(Ws, updates, rates)
    if _together(implementation, Ws) and len(set(rates)) == 1:
        torch._foreach_mul_(list(Ws), decay)
        torch._foreach_add_(
            list(Ws), [update.to(W.dtype) for W, update in zip(Ws, updates, strict=True)], alpha=-rates[0]
        )
        return
    for W, update, rate in zip(Ws, updates, rates, strict=True):
        descend_(W, update, decay, rate, implementation=implementation)


def _check_lengths(*lists: Sequence[object]) -> None:
    if len({len(each) for each in lists}) > 1:
        raise ValueError(f"the lists are not of one length: {[len(each) for each in lists]}")


def _together(implementation: str, *lists: Sequence[Tensor]) -> bool:
    """Whether nothing is rounded on the way: the reference on a CPU, and one wide dtype throughout."""
    first = lists[0][0] if lists[0] else None
    return (
        first is not None
        and implementation == "reference"
        and first.dtype in _WIDE
        and all(x.dtype == first.dtype and x.device.type == "cpu" for each in lists for x in each)
    )


def _blend(Gs: list[Tensor], Ms: list[Tensor], mu: float, nesterov: bool, Us: list[Tensor]) -> None:
    torch._foreach_lerp_(Ms, Gs, 1 - mu)
    torch._foreach_copy_(Us, torch._foreach_lerp(Gs, Ms, mu) if nesterov else Ms)
