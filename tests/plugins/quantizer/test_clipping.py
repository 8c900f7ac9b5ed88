"""Symmetric clipping: what it equals without clipping, whose gradient it passes, and what it minimises.

Shape legend: N out features, K in features, G groups of a row, g weights of a group.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stackloom.plugins.quantizer.blocks import walk
from stackloom.plugins.quantizer.clipping import (
    Learning,
    clipped_scale,
    fake_quantized,
    learn_clipping,
    round_through,
    search_clipping,
)
from stackloom.plugins.quantizer.grid import SMALLEST_SCALE, dequantize_groups, quantize_groups, round_to
from stackloom.testing import tiny_llama


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighted_error(weight, scale, importance):
    approximation = dequantize_groups(round_to(weight, scale, 4), scale, torch.float64)
    return ((weight.double() - approximation).square() * importance.double()).sum(1)


# --- grids ------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), group=st.sampled_from([4, 8, 24]))
@settings(max_examples=30)
def test_ratios_of_one_are_round_to_nearest(seed, group):
    weight = drawn(5, 24, seed=seed)
    q, scale = quantize_groups(weight, 4, group)
    found = clipped_scale(weight.reshape(5, -1, group), 1.0, 1.0, 4)
    assert torch.equal(found.float(), scale)
    assert torch.equal(round_to(weight, found, 4), round_to(weight, scale.double(), 4))
    assert torch.equal(q, round_to(weight, scale, 4))


def test_logit_four_clips_at_its_sigmoid():
    weight = drawn(5, 1, 24)
    ratio = torch.sigmoid(torch.tensor(4.0, dtype=torch.float64))
    assert ratio.item() == pytest.approx(0.98201, abs=1e-5)
    assert torch.allclose(
        clipped_scale(weight, ratio, ratio, 4), ratio * clipped_scale(weight, 1.0, 1.0, 4), rtol=1e-12
    )


@given(seed=st.integers(0, 99))
@settings(max_examples=30)
def test_only_the_larger_side_gets_a_gradient(seed):
    weight = drawn(6, 1, 16, seed=seed)
    gamma, beta = (torch.full((6, 1), 0.9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    clipped_scale(weight, gamma, beta, 4).sum().backward()
    upper = weight.amax(2) > -weight.amin(2)
    assert torch.equal(gamma.grad != 0, upper)
    assert torch.equal(beta.grad != 0, ~upper)


def test_scale_is_positive_for_zero_weights_and_zero_ratios():
    assert (clipped_scale(torch.zeros(2, 1, 4), 1.0, 1.0, 4) == SMALLEST_SCALE).all()
    assert (clipped_scale(torch.ones(2, 1, 4), 0.0, 0.0, 4) == SMALLEST_SCALE).all()


def test_rounding_passes_gradients_and_the_clamp_passes_them_inside_only():
    weight = torch.tensor([[[-9.2, -8.4, -1.3, 0.4, 6.8, 7.4, 9.0]]], dtype=torch.float64, requires_grad=True)
    found = fake_quantized(weight, torch.ones(1, 1, dtype=torch.float64), 4)
    assert found.tolist() == [[[-8, -8, -1, 0, 7, 7, 7]]]
    found.sum().backward()
    assert weight.grad.tolist() == [[[0, 1, 1, 1, 1, 1, 0]]]
    x = torch.tensor([0.5, 1.5, -2.5], requires_grad=True)
    assert round_through(x).tolist() == [0, 2, -2]


@given(seed=st.integers(0, 99))
@settings(max_examples=20)
def test_fake_quantized_is_what_is_stored(seed):
    weight = drawn(5, 24, seed=seed)
    scale = clipped_scale(weight.reshape(5, 3, 8), 0.8, 0.7, 4)
    stored = dequantize_groups(round_to(weight, scale, 4), scale, torch.float64)
    assert torch.equal(fake_quantized(weight.reshape(5, 3, 8), scale, 4).reshape(5, 24), stored)


# --- search -----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), group=st.sampled_from([8, 48]))
@settings(max_examples=20)
def test_search_is_never_worse_than_no_clipping_for_any_row(seed, group):
    weight, importance = drawn(6, 48, seed=seed).float(), drawn(48, seed=seed + 1).square().float()
    found = search_clipping(weight, importance, bits=4, group=group)
    plain = quantize_groups(weight, 4, group)[1]
    assert (weighted_error(weight, found, importance) <= weighted_error(weight, plain, importance) * (1 + 1e-5)).all()
    assert (found <= plain * (1 + 1e-6)).all()
    assert (found >= 0.5 * plain * (1 - 1e-6)).all()


def test_search_tries_every_ratio():
    weight, importance = drawn(4, 32).float(), drawn(32, seed=1).square().float()
    found = search_clipping(weight, importance, bits=4, group=32, lowest=0.6, points=5)
    for row in range(4):
        errors = []
        for ratio in (1.0, 0.9, 0.8, 0.7, 0.6):
            scale = clipped_scale(weight[row, None, None], ratio, ratio, 4)
            errors.append(weighted_error(weight[row, None], scale, importance).item())
        assert weighted_error(weight[row, None], found[row, None], importance).item() == pytest.approx(
            min(errors), rel=1e-5
        )


def test_search_spares_what_important_inputs_meet():
    """A large weight is clipped where its input is quiet, and kept where its input is loud."""
    weight = drawn(1, 64).float() * 0.1
    weight[0, 5] = 1.0
    quiet, loud = torch.ones(64), torch.ones(64)
    quiet[5], loud[5] = 1e-6, 1e6
    unclipped = quantize_groups(weight, 4, 64)[1]
    assert search_clipping(weight, quiet, bits=4, group=64) < 0.6 * unclipped
    assert torch.equal(search_clipping(weight, loud, bits=4, group=64), unclipped)


# --- learning ---------------------------------------------------------------------------------------------------------


def learned(epochs, **changes):
    """Learn on the first block of a small Llama; returns (linears, scales, losses)."""
    model = tiny_llama()
    tokens = list(torch.randint(0, 97, (4, 24), generator=torch.Generator().manual_seed(0)))
    block = next(walk(model, tokens, "test"))
    linears = {name: module for name, module in block.module.named_modules() if type(module) is nn.Linear}
    options = {"learning_rate": 1e-2, "initial_logit": 4.0, "int8_activations": True, "auxiliary": False} | changes
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scales, losses = learn_clipping(
        block,
        linears,
        block.inputs,
        block.outputs(),
        bits=4,
        group=None,
        learning=Learning(epochs=epochs, **options),
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(linear._forward_pre_hooks for linear in linears.values())
    return linears, scales, losses


@pytest.mark.parametrize("changes", [{}, {"int8_activations": False}, {"auxiliary": True}])
def test_learning_lowers_the_loss_of_the_blocks_output(changes):
    linears, scales, losses = learned(20, **changes)
    assert losses[-1] < losses[0]
    assert scales.keys() == linears.keys()
    assert all((scale > 0).all() for scale in scales.values())


def test_without_a_step_worth_the_name_scales_are_the_initial_ratio_of_round_to_nearest():
    linears, scales, _ = learned(1, learning_rate=1e-12)
    for name, linear in linears.items():
        plain = quantize_groups(linear.weight, 4, linear.in_features)[1]
        assert torch.allclose(scales[name], 0.98201 * plain, rtol=1e-4)


def test_blocks_see_what_the_blocks_before_them_give():
    model = tiny_llama()
    tokens = [torch.arange(9)]
    first, second = walk(model, tokens, "test")
    assert torch.equal(first.outputs()[0], second.inputs[0])
    blocks = walk(model, tokens, "test")
    first = next(blocks)
    with torch.no_grad():
        first.module.mlp.down_proj.weight.zero_()
    assert torch.equal(next(blocks).inputs[0], first.outputs()[0])
    with torch.no_grad():
        expected = model.model(tokens[0][None], use_cache=False).last_hidden_state
        assert torch.equal(model.model.norm(list(walk(model, tokens, "test"))[-1].outputs()[0]), expected)
