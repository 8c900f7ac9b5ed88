"""`algorithm.gspo`: the slot's laws, and the gradient of one token against the formula."""

import pytest
import torch

from stackloom.plugins.algorithm.gspo.config import GspoConfig
from stackloom.testing import AlgorithmContract


class TestGspo(AlgorithmContract):
    plugin = "algorithm.gspo"


def slope(ratio, advantage, **options):
    """Return d gain / d logp of one token whose probability ratio and advantage are given."""
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    gains = GspoConfig(**options).build().gains(logp, torch.zeros_like(logp), advantages, mask)
    return torch.autograd.grad(gains.sum(), logp)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 2.0, 2.0), (1.01, 1.0, 0.0), (0.9, 1.0, 0.9), (0.9, -1.0, 0.0)],
)
def test_one_token_is_ppo_on_it(ratio, advantage, expected):
    assert slope(ratio, advantage) == pytest.approx(expected, abs=1e-6)


def test_ratio_of_a_response_is_the_geometric_mean():
    logp = torch.full((1, 1000), 1e-3, dtype=torch.float64)
    mask, one = torch.ones(1, 1000, dtype=torch.bool), torch.ones(1, 1, dtype=torch.float64)
    gains = GspoConfig(clip_high=0.5).build().gains(logp, torch.zeros_like(logp), one, mask)
    torch.testing.assert_close(gains, torch.full_like(logp, 1e-3).exp())
