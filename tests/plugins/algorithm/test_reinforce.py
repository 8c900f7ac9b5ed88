"""`algorithm.reinforce`: the slot's laws, and the gradient of one token against the formula."""

import pytest
import torch

from stackloom.plugins.algorithm.reinforce.config import ReinforceConfig
from stackloom.testing import AlgorithmContract


class TestReinforce(AlgorithmContract):
    plugin = "algorithm.reinforce"


def slope(ratio, advantage, **options):
    """Return d gain / d logp of one token whose probability ratio and advantage are given."""
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    gains = ReinforceConfig(**options).build().gains(logp, torch.zeros_like(logp), advantages, mask)
    return torch.autograd.grad(gains.sum(), logp)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 2.0, 2.0), (5.0, 2.0, 2.0), (0.1, -1.0, -1.0)],
)
def test_slope_is_the_advantage_at_any_ratio(ratio, advantage, expected):
    assert slope(ratio, advantage) == pytest.approx(expected, abs=1e-6)
