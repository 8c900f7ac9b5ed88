"""`algorithm.grpo-longcat`: the slot's laws, and the gradient of one token against the formula."""

from types import SimpleNamespace

import pytest
import torch

from stackloom.plugins.algorithm.grpo_longcat import claims
from stackloom.plugins.algorithm.grpo_longcat.config import GrpoLongcatConfig
from stackloom.testing import AlgorithmContract, build


class TestGrpoLongcat(AlgorithmContract):
    plugin = "algorithm.grpo-longcat"


def slope(ratio, advantage, **options):
    """Return d gain / d logp of one token whose probability ratio and advantage are given."""
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    gains = GrpoLongcatConfig(**options).build().gains(logp, torch.zeros_like(logp), advantages, mask)
    return torch.autograd.grad(gains.sum(), logp)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (0.1, 1.0, 0.1),
        (1.27, 1.0, 1.27),
        (1.3, 1.0, 0.0),
        (0.7, -1.0, 0.0),
        (0.9, -1.0, -0.9),
        (2.9, -1.0, -2.9),
        (3.1, -1.0, 0.0),
        (1.0, 0.0, 0.0),
    ],
)
def test_three_clips_by_the_sign_of_the_advantage(ratio, advantage, expected):
    assert slope(ratio, advantage) == pytest.approx(expected, abs=1e-6)


CONTEXT = SimpleNamespace(seeds=range(20), component=build)


def test_gradient_on_a_tabular_policy_is_the_one_written_out_by_hand():
    assert claims.gradient_is_the_formula(CONTEXT).ours < 1e-12


def test_printed_formula_has_no_gradient_on_positive_advantages():
    assert claims.literal_formula_has_no_positive_gradient(CONTEXT).ours == 0.0
