"""The low-rank branch with an annealed activation in plain torch: the truth that every other implementation answers to.

Shapes: ``...`` any leading dimensions (M is their product), K in features, N out features, R rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name

from ..contract import accumulation_dtype

ACTIVATIONS = ("relu", "silu", "gelu", "tanh")


def forward(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: torch.Tensor,
    activation: str,
    scaling: float,
    addend: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = addend + scaling phi(x A') B' with phi(z) = beta sigma(z) + (1 - beta) z.

    z, phi and y are each rounded to x's dtype once, and what follows reads the rounded numbers; phi is computed in
    float32 (float64 for float64). With beta 0 it is z and with beta 1 sigma(z), exactly.

    Args:
        x: (..., K).
        A: (R, K), of x's dtype.
        B: (N, R), of x's dtype.
        beta: 0-d, float32 or float64.
        activation: one of ``ACTIVATIONS``.
        scaling: factor of the branch.
        addend: (..., N), of x's dtype; None for zero.

    Returns:
        y (..., N) and z (..., R), in x's dtype, contiguous.
    """
    rows = x.reshape(-1, x.shape[-1])
    z = F.linear(rows, A)
    phi = blend(z.to(accumulation_dtype(z.dtype)), beta, activation).to(z.dtype)
    if addend is None:
        y = F.linear(phi, B) * scaling
    else:
        y = torch.addmm(addend.reshape(-1, B.shape[0]), phi, B.t(), alpha=scaling)
    return y.view(*x.shape[:-1], B.shape[0]), z.view(*x.shape[:-1], A.shape[0])


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    beta: torch.Tensor,
    z: torch.Tensor,
    activation: str,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of :func:`forward`, with g = scaling grad B: that of the addend is ``grad`` itself.

    dz = g phi'(z), dx = dz A, dA = dz' x, dB = scaling grad' phi(z), dbeta = sum of g (sigma(z) - z). dz and phi are
    rounded to x's dtype before the products.

    Args:
        grad: (..., N), of y.
        x, A, B, beta, activation, scaling: as given to forward.
        z: (..., R), as returned by forward.

    Returns:
        dx (..., K), dA (R, K), dB (N, R) in x's dtype and dbeta, 0-d, in beta's; contiguous.
    """
    wide = accumulation_dtype(x.dtype)
    grads, rows, inner = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad, x, z))
    inner = inner.to(wide)
    g = _thin(B.t(), grads.t()).to(wide) * scaling
    bent, slope = _activated(inner, activation)
    dz = (g * _mixed_slope(inner, slope, beta, activation)).to(x.dtype)
    phi = blend(inner, beta, activation).to(x.dtype)
    dx = (dz @ A).view(x.shape)
    dA, dB = dz.t() @ rows, _thin(phi.t(), grads) * scaling
    return dx, dA, dB, (g * (bent - inner)).sum().to(beta.dtype)


def _thin(few_RC: torch.Tensor, many_CM: torch.Tensor) -> torch.Tensor:
    """(few many)', (M, R), contiguous: a CPU multiplies a few rows up to ten times faster than a few columns."""
    return (few_RC @ many_CM).t().contiguous()


def blend(z: torch.Tensor, beta: torch.Tensor, activation: str) -> torch.Tensor:
    """phi(z) = beta sigma(z) + (1 - beta) z, elementwise, in z's dtype.

    For ReLU it is the leaky one of slope 1 - beta: one select. beta 0 gives z and beta 1 gives sigma(z), bit by bit.

    Args:
        z: float32 or float64, any shape.
        beta: 0-d.
        activation: one of ``ACTIVATIONS``.
    """
    weight = beta.to(z.dtype)
    if activation == "relu":
        return torch.where(z > 0, z, (1 - weight) * z)
    return torch.lerp(z, _activate(z, activation), weight)


def _activate(z: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "silu":
        return F.silu(z)
    if activation == "gelu":
        return F.gelu(z)
    return torch.tanh(z) if activation == "tanh" else torch.relu(z)


def _activated(z: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """sigma(z) and its derivative; ReLU's at 0 is 0."""
    bent = _activate(z, activation)
    if activation == "silu":
        gate = torch.sigmoid(z)
        return bent, gate * (1 + z - bent)
    if activation == "gelu":  # sigma = z Phi(z), so sigma' = Phi(z) + z exp(-z^2 / 2) / sqrt(2 pi)
        return bent, torch.special.ndtr(z) + z * torch.exp(-0.5 * z * z) * 0.3989422804014327
    if activation == "tanh":
        return bent, 1 - bent * bent
    return bent, (z > 0).to(z.dtype)


def _mixed_slope(z: torch.Tensor, slope: torch.Tensor, beta: torch.Tensor, activation: str) -> torch.Tensor:
    """phi'(z) = beta sigma'(z) + 1 - beta; exactly 1 where beta is 0, and for ReLU where z is positive."""
    weight = beta.to(z.dtype)
    if activation == "relu":
        return torch.where(z > 0, torch.ones_like(z), 1 - weight)
    return torch.lerp(torch.ones_like(z), slope, weight)
