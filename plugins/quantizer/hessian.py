"""Hessian compensation: each column's rounding error is made up for by the columns not yet rounded (GPTQ).

For `min |x W' - x V'|^2` over grid points V, rows are independent and share the Hessian `H = 2 mean(x' x)`. With
`H^-1 = U' U`, U upper triangular, rounding column i in order and adding `-(w_i - v_i) / U_ii * U_ij` to every later
column j is optimal for the columns that are left.

Shape legend: N out features, K in features, G groups of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stackloom.core.errors import FitError
from stackloom.plugins.quantizer.grid import group_scales, round_to

RETRIES, GROWTH = 3, 10.0  # of the damping, when the damped Hessian is not positive definite


class Rounded(NamedTuple):
    """A weight on its grid.

    Attributes:
        q_NK: (N, K) int8.
        scale_NG: (N, G) float32.
        damping: the fraction of the mean diagonal that was added in the end.
    """

    q_NK: Tensor  # noqa: N815 - shapes are part of names here
    scale_NG: Tensor  # noqa: N815
    damping: float


def inverse_factor(hessian_KK: Tensor, damping: float, where: str = "") -> tuple[Tensor, float]:
    """Return (U, damping) with `U' U = (H + damping * mean(diag H) I)^-1`, U upper triangular.

    A channel that is dead (diagonal 0) gets diagonal 1. Damping grows tenfold, up to three times, until the matrix is
    positive definite.

    Args:
        hessian_KK: (K, K), symmetric and positive semidefinite; float32 or float64, not changed.
        damping: fraction of the mean diagonal; 0.01 is usual.
        where: the layer, for messages.

    Raises:
        FitError: the Hessian is not finite, or not positive definite with the largest damping either.
    """
    diagonal_K = hessian_KK.diagonal()
    if not torch.isfinite(hessian_KK).all():
        raise FitError("the Hessian is not finite", where=where, fix="check the calibration data")
    dead_K = diagonal_K == 0
    identity_KK = torch.eye(len(diagonal_K), dtype=hessian_KK.dtype, device=hessian_KK.device)
    mean = diagonal_K.mean().item() or 1.0
    for attempt in range(RETRIES + 1):
        tried = damping * GROWTH**attempt
        damped_KK = hessian_KK + torch.diag(dead_K.to(hessian_KK.dtype)) + tried * mean * identity_KK
        lower_KK, failed = torch.linalg.cholesky_ex(damped_KK)
        if not failed:
            upper_KK, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_KK), upper=True)
        if not failed and torch.isfinite(upper_KK).all():
            return upper_KK, tried
    raise FitError(
        f"the Hessian is not positive definite, even with damping {tried:g}",
        where=where,
        fix="give more calibration data, or raise the damping",
    )


def compensate(
    weight_NK: Tensor,
    hessian_KK: Tensor,
    *,
    bits: int,
    group: int,
    scale_NG: Tensor | None = None,
    full: bool = False,
    damping: float = 0.01,
    block: int = 128,
    act_order: bool = False,
    where: str = "",
) -> Rounded:
    """Round a weight column by column, each error made up for by the columns after it.

    Args:
        weight_NK: (N, K) floats; not changed.
        hessian_KK: (K, K) `2 mean(x' x)`; the arithmetic is in its dtype (float32 or float64).
        bits, group: of the grid; `group` divides K.
        scale_NG: (N, G) fixed scales; None finds a group's scales when its first column is reached, from the columns
            as compensated so far, or, with `act_order`, from the weight as given.
        full: the grid of scales that are found here, as in `grid.group_scales`.
        damping: as in `inverse_factor`.
        block: columns after which the rest of the weight is updated; it changes time and not the result.
        act_order: columns of larger `H_ii` first. Scales stay those of a column's own group.
        where: the layer, for messages.

    Returns:
        q in [-2^(b-1), 2^(b-1) - 1], 0 in dead channels; the scales; the damping.

    Raises:
        ValueError: the shapes do not go together.
        FitError: as `inverse_factor`.

    Source: GPTQ (arXiv 2210.17323), algorithm 1; the authors' code for damping and dead channels.

    Example:
        >>> compensate(linear.weight, statistics.hessian_KK, bits=4, group=64).q_NK
    """
    rows, columns = weight_NK.shape
    if columns % group or hessian_KK.shape != (columns, columns):
        raise ValueError(f"group {group} and Hessian {tuple(hessian_KK.shape)} do not go with {columns} in features")
    if scale_NG is None and act_order:
        scale_NG = group_scales(weight_NK, bits, group, full=full)
    found = scale_NG is None
    scale_NG = torch.ones(rows, columns // group, device=weight_NK.device) if scale_NG is None else scale_NG
    order_K = torch.arange(columns, device=weight_NK.device)
    if act_order:
        order_K = torch.argsort(hessian_KK.diagonal(), descending=True, stable=True)
    left_NK = weight_NK.to(hessian_KK.dtype)[:, order_K]
    left_NK[:, hessian_KK.diagonal()[order_K] == 0] = 0
    upper_KK, used = inverse_factor(hessian_KK[order_K][:, order_K], damping, where)
    q_NK = torch.empty(rows, columns, dtype=torch.int8, device=weight_NK.device)
    places = (order_K // group).tolist()
    for first in range(0, columns, block):
        last = min(first + block, columns)
        errors_NB = torch.empty(rows, last - first, dtype=left_NK.dtype, device=left_NK.device)
        for column in range(first, last):
            if found and column % group == 0:
                ahead_Ng = left_NK[:, column : column + group]
                if column + group > last:  # the columns beyond this block have not heard of its errors yet
                    ahead_Ng = ahead_Ng.clone()
                    owed = errors_NB[:, : column - first] @ upper_KK[first:column, last : column + group]
                    ahead_Ng[:, last - column :] -= owed
                scale_NG[:, column // group] = group_scales(ahead_Ng, bits, group, full=full)[:, 0]
            step_N = scale_NG[:, places[column]].to(left_NK.dtype)
            point_N = round_to(left_NK[:, column : column + 1], step_N[:, None], bits)[:, 0]
            error_N = (left_NK[:, column] - point_N.to(left_NK.dtype) * step_N) / upper_KK[column, column]
            left_NK[:, column:last] -= error_N[:, None] * upper_KK[column, column:last]
            q_NK[:, column], errors_NB[:, column - first] = point_N, error_N
        left_NK[:, last:] -= errors_NB @ upper_KK[first:last, last:]
    result_NK = torch.empty_like(q_NK)
    result_NK[:, order_K] = q_NK
    return Rounded(result_NK, scale_NG.float(), used)


def output_error(weight_NK: Tensor, approximation_NK: Tensor, hessian_KK: Tensor) -> float:
    """Return `tr(D H D') / tr(W H W')`, D = W - V: the output's squared error as a fraction of its square.

    Example:
        >>> output_error(torch.eye(2), 0.9 * torch.eye(2), torch.eye(2))  # 0.01
    """
    weight_NK, difference_NK = (
        value.to(hessian_KK.dtype) for value in (weight_NK, weight_NK.double() - approximation_NK.double())
    )
    noise = ((difference_NK @ hessian_KK) * difference_NK).sum().item()
    signal = ((weight_NK @ hessian_KK) * weight_NK).sum().item()
    return max(0.0, noise) / signal if signal > 0 else 0.0
