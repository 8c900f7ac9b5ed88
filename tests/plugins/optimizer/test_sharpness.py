"""Sharpness against eigenvalues that are known."""

import pytest
import torch

from stackloom.plugins.optimizer.byte_llama import ByteLlama, Size
from stackloom.plugins.optimizer.sharpness import sharpness


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_the_largest_eigenvalue_of_a_quadratic(sign):
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1, 0.0]).double() * sign) @ basis.mT
    parts = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def loss():
        point = torch.cat(parts)
        return 0.5 * point @ matrix @ point

    assert sharpness(loss, parts, iterations=40) == pytest.approx(5.0 * sign, rel=1e-6)


def test_a_linear_loss_has_none():
    weight = torch.ones(3, requires_grad=True)
    assert sharpness(lambda: weight.sum(), [weight]) == 0.0


def test_it_is_the_hessians_on_the_small_llama():
    model = ByteLlama(Size(layers=1, width=8, heads=2, inner=8), seed=0).double()
    tokens = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    gains = [model.norm.weight, model.layers[0].mlp_norm.weight]
    sizes = [gain.numel() for gain in gains]
    names = ["norm.weight", "layers.0.mlp_norm.weight"]

    def loss(flat):
        return torch.func.functional_call(
            _Loss(model), dict(zip(_prefixed(names), flat.split(sizes), strict=True)), tokens
        )

    hessian = torch.autograd.functional.hessian(loss, torch.cat([gain.detach() for gain in gains]))
    values = torch.linalg.eigvalsh(hessian)
    top = values[values.abs().argmax()].item()
    assert sharpness(lambda: model.loss(tokens), gains, iterations=300) == pytest.approx(top, rel=1e-3)


class _Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model.loss(tokens)


def _prefixed(names):
    return [f"model.{name}" for name in names]
