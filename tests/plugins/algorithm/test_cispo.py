"""`algorithm.cispo`: the slot's laws, and the gradient of one token against the formula."""

import pytest
import torch

from stackloom.plugins.algorithm.cispo.config import CispoConfig
from stackloom.testing import AlgorithmContract


class TestCispo(AlgorithmContract):
    plugin = "algorithm.cispo"


def slope(ratio, advantage, **options):
    """Return d gain / d logp of one token whose probability ratio and advantage are given."""
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    gains = CispoConfig(**options).build().gains(logp, torch.zeros_like(logp), advantages, mask)
    return torch.autograd.grad(gains.sum(), logp)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(2.0, 1.0, 2.0), (9.0, 1.0, 3.0), (9.0, -1.0, -3.0), (0.1, 1.0, 0.1)],
)
def test_clipped_token_keeps_a_bounded_gradient(ratio, advantage, expected):
    assert slope(ratio, advantage) == pytest.approx(expected, abs=1e-6)
