"""What the algorithms share: normalisers, the engine's weight, the age limit, and checks of a batch."""

from dataclasses import replace

import pytest
import torch

from stackloom.core.errors import ConfigError
from stackloom.plugins.algorithm.batch import Batch
from stackloom.plugins.algorithm.reinforce.config import ReinforceConfig

ONES = torch.ones(2, 4, dtype=torch.float64)
BATCH = Batch(
    logp_old=-ONES,
    logp_infer=-ONES,
    mask=torch.tensor([[True, True, False, False], [True, True, True, True]]),
    rewards=torch.tensor([3.0, 1.0], dtype=torch.float64),
    valid=torch.tensor([True, True]),
    groups=torch.tensor([7, 7]),
    ages=torch.tensor([0, 1]),
    responses=2,
    tokens=6,
)


def gradient(batch=BATCH, **options):
    logp = (-ONES).requires_grad_()
    return torch.autograd.grad(ReinforceConfig(**options).build().loss(logp, batch), logp)[0]


@pytest.mark.parametrize(
    ("normaliser", "short", "long"),
    [("response", 1 / 4, 1 / 8), ("tokens", 1 / 6, 1 / 6), ("constant", 1 / 32, 1 / 32)],
)
def test_normaliser_weighs_a_token_of_a_short_and_of_a_long_response(normaliser, short, long):
    found = gradient(normaliser=normaliser, max_tokens=16)
    assert found[0].tolist() == pytest.approx([-short, -short, 0, 0], rel=1e-12)
    assert found[1].tolist() == pytest.approx([long] * 4, rel=1e-12)


def test_without_scale_advantages_are_centred_rewards():
    build = ReinforceConfig(advantage_scale="none").build
    batch = replace(BATCH, rewards=torch.tensor([5.0, 1.0], dtype=torch.float64))
    assert build().advantages(batch).tolist() == [2.0, -2.0]


def test_engine_weight_is_the_probability_ratio_up_to_the_cap():
    halved, tenfold = (replace(BATCH, logp_infer=-ONES - torch.tensor(x).log()) for x in (0.5, 10.0))
    torch.testing.assert_close(gradient(halved, engine_cap=2.0), 0.5 * gradient())
    torch.testing.assert_close(gradient(tenfold, engine_cap=2.0), 2.0 * gradient())
    assert torch.equal(gradient(tenfold), gradient())


def test_age_limit_leaves_an_old_response_out_of_the_groups_mean():
    three = replace(
        BATCH,
        **{name: getattr(BATCH, name)[[0, 0, 1]] for name in ("logp_old", "logp_infer", "mask", "valid", "groups")},
        rewards=torch.tensor([3.0, 1.0, 100.0], dtype=torch.float64),
        ages=torch.tensor([0, 2, 3]),
        responses=3,
        tokens=8,
    )
    assert ReinforceConfig(max_age=2).build().advantages(three).tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"mask": BATCH.mask.long()}, "mask"),
        ({"logp_old": ONES[:, :3]}, "logp_old"),
        ({"logp_infer": ONES * float("nan")}, "logp_infer"),
        ({"rewards": torch.tensor([1, 0])}, "rewards"),
        ({"valid": torch.tensor([1, 1])}, "valid"),
        ({"groups": torch.tensor([7])}, "groups"),
        ({"ages": torch.tensor([0, -1])}, "ages"),
        ({"responses": 1}, "responses"),
        ({"tokens": 5}, "tokens"),
    ],
)
def test_batch_that_does_not_go_together_is_refused(changes, place):
    with pytest.raises(ConfigError, match=place):
        replace(BATCH, **changes)
