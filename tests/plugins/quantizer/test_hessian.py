"""Hessian compensation in float64: against its definition, blockwise, with dead channels, and against rounding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.errors import FitError
from stackloom.plugins.quantizer.grid import dequantize_groups, group_scales, quantize_groups
from stackloom.plugins.quantizer.hessian import compensate, inverse_factor, output_error


def drawn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessian(columns, seed=0):
    """Of correlated inputs."""
    mixing = torch.eye(columns) + 0.3 * drawn(columns, columns, seed=seed + 1)
    x = drawn(4 * columns, columns, seed=seed) @ mixing
    return 2 * x.T @ x / len(x)


def value(weight, found):
    return dequantize_groups(found.q_NK, found.scale_NG, torch.float64)


def test_factor_is_that_of_the_damped_inverse():
    h = hessian(12)
    upper, damping = inverse_factor(h, 0.01)
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert damping == 0.01
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-10)


def by_the_definition(weight, h, scale, damping):
    """Round column by column, solving the remaining least-squares problem anew each time."""
    columns = len(h)
    damped = h + damping * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    left, q = weight.clone(), torch.empty_like(weight)
    for i in range(columns):
        q[:, i] = torch.round(left[:, i] / scale[:, 0]).clamp(-8, 7)
        error = left[:, i] - q[:, i] * scale[:, 0]
        inverse = torch.linalg.inv(damped[i:, i:])
        left[:, i:] -= (error / inverse[0, 0])[:, None] * inverse[0]
    return q.to(torch.int8)


@given(seed=st.integers(0, 50))
@settings(max_examples=20)
def test_columns_are_rounded_as_the_optimal_update_says(seed):
    weight, h = drawn(5, 10, seed=seed), hessian(10, seed)
    scale = group_scales(weight, 4, 10)
    found = compensate(weight, h, bits=4, group=10, scale_NG=scale)
    assert torch.equal(found.q_NK, by_the_definition(weight, h, scale.double(), 0.01))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [8, 24, 48])
def test_blocks_change_nothing(group, act_order):
    weight, h = drawn(6, 48), hessian(48)
    results = [
        compensate(weight, h, bits=4, group=group, block=block, act_order=act_order) for block in (1, 7, 16, 48, 128)
    ]
    for other in results[1:]:
        assert torch.equal(other.q_NK, results[0].q_NK)
        torch.testing.assert_close(other.scale_NG, results[0].scale_NG, rtol=1e-6, atol=0)


@pytest.mark.parametrize("group", [8, 32])
def test_multiple_of_the_identity_is_round_to_nearest(group):
    weight = drawn(6, 32)
    found = compensate(weight, 3.0 * torch.eye(32, dtype=torch.float64), bits=4, group=group)
    q, scale = quantize_groups(weight, 4, group)
    assert torch.equal(found.q_NK, q)
    assert torch.equal(found.scale_NG, scale)


@pytest.mark.parametrize("act_order", [False, True])
def test_output_error_is_below_that_of_rounding_in_nearly_every_trial(act_order):
    better = 0
    for seed in range(100):
        weight, h = drawn(8, 32, seed=seed), hessian(32, seed)
        scale = group_scales(weight, 4, 16)
        rounded = dequantize_groups(quantize_groups(weight, 4, 16)[0], scale, torch.float64)
        found = compensate(weight, h, bits=4, group=16, scale_NG=scale, act_order=act_order)
        better += output_error(weight, value(weight, found), h) <= output_error(weight, rounded, h)
    assert better >= 99


def test_act_order_takes_loud_columns_first_and_helps_where_inputs_differ():
    errors = {False: 0.0, True: 0.0}
    for seed in range(20):
        loudness = torch.logspace(-1, 1, 32, dtype=torch.float64)
        weight, h = drawn(8, 32, seed=seed), loudness[:, None] * hessian(32, seed) * loudness
        scale = group_scales(weight, 4, 16)
        for act_order in errors:
            found = compensate(weight, h, bits=4, group=16, scale_NG=scale, act_order=act_order)
            errors[act_order] += output_error(weight, value(weight, found), h)
    assert errors[True] < errors[False]


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_channels_become_zero_and_the_others_do_not_notice(act_order):
    weight, h = drawn(4, 12), hessian(12)
    h[:, [3, 7]] = h[[3, 7]] = 0
    living = [k for k in range(12) if k not in (3, 7)]
    scale = group_scales(weight, 4, 12)
    found = compensate(weight, h, bits=4, group=12, scale_NG=scale, act_order=act_order, damping=1e-9)
    alone = compensate(
        weight[:, living], h[living][:, living], bits=4, group=10, scale_NG=scale, act_order=act_order, damping=1e-9
    )
    assert (found.q_NK[:, [3, 7]] == 0).all()
    assert torch.equal(found.q_NK[:, living], alone.q_NK)


def test_nothing_but_dead_channels_is_zero():
    assert (compensate(drawn(3, 8), torch.zeros(8, 8), bits=4, group=8).q_NK == 0).all()


def test_damping_grows_until_the_hessian_can_be_factored():
    singular = torch.ones(6, 6, dtype=torch.float64)
    singular[0, 1] = singular[1, 0] = 1.05  # indefinite by a little
    _, damping = inverse_factor(singular, 1e-3)
    assert damping in (1e-2, 1e-1, 1.0)
    with pytest.raises(FitError, match=r"layer 7: the Hessian is not positive definite, even with damping 1e-09"):
        inverse_factor(singular * 1.0, 1e-12, "layer 7")
    with pytest.raises(FitError, match="not finite"):
        inverse_factor(torch.full((3, 3), math.nan), 0.01)


def test_shapes_that_do_not_go_together_are_value_errors():
    for group, columns in ((5, 12), (4, 8)):
        with pytest.raises(ValueError, match="do not go with 12 in features"):
            compensate(drawn(2, 12), hessian(columns), bits=4, group=group)


def test_output_error_is_the_mean_squared_error_of_outputs():
    x, weight, other = drawn(40, 6), drawn(5, 6, seed=1), drawn(5, 6, seed=2)
    expected = ((x @ (weight - other).T) ** 2).sum() / ((x @ weight.T) ** 2).sum()
    assert output_error(weight, other, 2 * x.T @ x / 40) == pytest.approx(expected.item(), rel=1e-12)
