"""Sharpness: the largest eigenvalue of a loss's Hessian, from Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sharpness(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, iterations: int = 20, seed: int = 0
) -> float:
    """Return the Hessian's eigenvalue of largest magnitude, by power iteration.

    Each iteration takes one gradient of a gradient: about twice a backward pass. The answer is the Rayleigh quotient of
    the last vector, so after few iterations its magnitude is too small rather than too large.

    Args:
        loss: computes a scalar from the parameters, twice differentiable and the same at every call.
        parameters: what the Hessian is taken in; each requires grad.
        iterations: how often the vector is multiplied.
        seed: of the first vector.

    Returns:
        The eigenvalue, in units of the loss per squared unit of the parameters; 0 for a loss without curvature.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> round(sharpness(lambda: 3 * w[0] ** 2 + w[1] ** 2, [w]), 4)
        6.0
    """
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in parameters]
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    value = 0.0
    for _ in range(iterations):
        size = _dot(vector, vector).sqrt()
        vector = [part / size for part in vector]
        slope = _dot(gradients, vector)
        if not slope.requires_grad:  # a linear loss: its gradient does not depend on the parameters
            return 0.0
        products = torch.autograd.grad(slope, parameters, retain_graph=True, materialize_grads=True)
        value = float(_dot(products, vector))
        if not any(bool(part.any()) for part in products):
            return 0.0
        vector = list(products)
    return value


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * two).sum() for one, two in zip(left, right, strict=True)]).sum()
