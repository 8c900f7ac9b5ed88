"""`algorithm.grpo`: the slot's laws, and the gradient of one token against the formula."""

import pytest
import torch

from stackloom.plugins.algorithm.grpo.config import GrpoConfig
from stackloom.testing import AlgorithmContract


class TestGrpo(AlgorithmContract):
    plugin = "algorithm.grpo"


def slope(ratio, advantage, **options):
    """Return d gain / d logp of one token whose probability ratio and advantage are given."""
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    gains = GrpoConfig(**options).build().gains(logp, torch.zeros_like(logp), advantages, mask)
    return torch.autograd.grad(gains.sum(), logp)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.1, 1.0, 1.1), (1.3, 1.0, 0.0), (0.5, 1.0, 0.5), (0.7, -1.0, 0.0), (9.0, -1.0, -9.0)],
)
def test_clip_stops_a_token_that_moved_far_enough(ratio, advantage, expected):
    assert slope(ratio, advantage) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(2.9, -1.0, -2.9), (9.0, -1.0, 0.0), (0.5, 1.0, 0.5)],
)
def test_dual_clip_bounds_negative_tokens_alone(ratio, advantage, expected):
    assert slope(ratio, advantage, dual_clip=3.0) == pytest.approx(expected, abs=1e-6)
