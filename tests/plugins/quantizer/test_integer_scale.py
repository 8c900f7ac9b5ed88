"""`quantizer.integer-scale`: the slot's laws, the identities and bounds of its paper page, and its refusals.

Shape legend: M tokens, N out features, K in features, G groups of a row, g weights of a group.
"""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stackloom.core.errors import ConfigError, FitError
from stackloom.core.ref import Ref
from stackloom.kernels.w4a8_gemm import accumulator_bound, pack_weight, w4a8_gemm_integer
from stackloom.plugins.quantizer.grid import quantize_groups, quantize_tokens
from stackloom.plugins.quantizer.integer_scale.amplification import (
    INT32_MAX,
    heuristic,
    inflation,
    integer_scales,
    requantized,
    worst_sums,
)
from stackloom.plugins.quantizer.integer_scale.config import IntegerScaleConfig
from stackloom.plugins.quantizer.layers import quantized
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.plugins.quantizer.rtn.config import RTNConfig
from stackloom.testing import QuantizerContract, llama_shape, relative_error, tiny_llama

EPS = torch.finfo(torch.float32).eps
BASE = RTNConfig(scheme="w4a8", group_size=16)


class TestOnRTN(QuantizerContract):
    plugin = "quantizer.integer-scale"
    lowest_snr_db = 17.0


class TestPerChannelOnW8A8OfTheMLPs(QuantizerContract):
    plugin = "quantizer.integer-scale"
    options: ClassVar = {
        "base": {"use": "quantizer.rtn", "group_size": 32, "include": ["*.mlp.*"]},
        "per": "channel",
        "amplifier": 65536,
    }
    logits_error, lowest_snr_db = 0.05, 35.0


class TestErrorBudgetWithBiases(QuantizerContract):
    plugin = "quantizer.integer-scale"
    options: ClassVar = {
        "base": {"use": "quantizer.rtn", "scheme": "w4a8", "group_size": 16, "exclude": ["*o_proj", "*lm_head*"]},
        "policy": "error-budget",
        "requantize": True,
        "rounding": "up",
    }
    lowest_snr_db = 17.0

    @classmethod
    def shape(cls):
        return llama_shape(hidden=64, head_dim=16, intermediate=128, attention_bias=True, mlp_bias=True)


def drawn(rows, columns, seed, spread=1.0, dtype=torch.float32):
    return spread * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(columns=64, rows=12, group=16, seed=0, spread=0.1, bits=4, dtype=torch.float32):
    """Return (float layer, quantized layer with float scales)."""
    linear = nn.Linear(columns, rows, dtype=dtype)
    linear.weight.data.copy_(drawn(rows, columns, seed, spread))
    linear.bias.data.copy_(drawn(1, rows, seed + 1)[0])
    made = QuantizedLinear.like(linear, bits=bits, group=group, int8_activations=True)
    made.put(*quantize_groups(linear.weight, bits, group), linear.bias)
    return linear, made


def chosen(made, linear=None, **options):
    """Return (q, I, alpha) as the plugin chooses them."""
    weight = made.dequantized(torch.float32) if linear is None else linear.weight
    return IntegerScaleConfig(base=BASE, **options).build().choose(made, weight, "the.layer")


def amplified(made, **options):
    _, multiplier, amplifier = chosen(made, **options)
    made.amplify(multiplier, amplifier)
    return made


def sums(q_MK, w_NK, multiplier_NG):
    """Return A (M, N) in int64: the oracle."""
    rows, groups = multiplier_NG.shape
    dots = torch.einsum(
        "mgk,ngk->mng", q_MK.long().reshape(len(q_MK), groups, -1), w_NK.long().reshape(rows, groups, -1)
    )
    return (dots * multiplier_NG.long()).sum(2)


# --- identities -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), power=st.integers(0, 10))
@settings(max_examples=30)
def test_scales_that_are_multiples_of_one_over_the_amplifier_stay_exact(seed, power):
    _, made = layer(seed=seed)
    made.scale.copy_((made.scale * 2**10).round().clamp_min(1) * 2.0**-10)
    before, x = made.dequantized(torch.float64), drawn(5, 64, seed + 1)
    with torch.no_grad():
        expected = made(x)
        found = amplified(made, amplifier=2 ** (10 + power))
        assert torch.equal(found.dequantized(torch.float64), before)
        size = quantize_tokens(x)[0].abs().double() @ before.abs().T
        assert ((found(x) - expected).abs() <= 8 * EPS * (size * quantize_tokens(x)[1] + 1)).all()


@given(seed=st.integers(0, 999), shifts=st.integers(4, 16))
@settings(max_examples=40)
def test_error_is_within_four_over_the_amplifier_times_the_inputs(seed, shifts):
    """abs(q) <= 8 and abs(I / alpha - s) <= 1 / (2 alpha): section 2.4."""
    _, made = layer(seed=seed)
    q, multiplier, amplifier = chosen(made, amplifier=2**shifts, zeroed="keep")
    rounded, scale = quantize_tokens(drawn(4, 64, seed + 1))
    x = rounded.double() * scale.double()
    step = (multiplier.double() / amplifier.double()[:, None]).repeat_interleave(16, 1)
    found, expected = x @ (q.double() * step).T, x @ made.dequantized(torch.float64).T
    assert ((found - expected).abs() <= 4 / 2**shifts * x.abs().sum(1, keepdim=True) + 1e-12).all()


@pytest.mark.parametrize("spread", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("group", [4, 16, 64])
def test_layer_is_the_int64_oracle_divided_once(spread, group):
    _, made = layer(group=group, spread=spread)
    made = amplified(made)
    for x in (drawn(6, 64, 9), torch.where(made.integers()[:3] < 0, -3.0, 3.0)):
        q, scale = quantize_tokens(x)
        whole = sums(q, made.integers(), made.scale)
        assert whole.abs().max() <= INT32_MAX
        expected = whole.int().float() / made.amplifier * scale + made.bias
        with torch.no_grad():
            assert torch.equal(made.from_stored(x), expected)
            assert relative_error(made(x), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_layer_with_the_scales_divided_agrees_with_the_integer_layer(dtype):
    _, made = layer(dtype=dtype)
    _, twin = layer(dtype=dtype)
    made = amplified(made)
    twin.scale.copy_(made.float_scale())
    x = drawn(7, 64, 3, dtype=dtype)
    with torch.no_grad():
        found, expected = made(x).float(), twin(x).float()
    q, scale = quantize_tokens(x)
    size = (q.abs().float() * scale) @ made.dequantized(torch.float32).abs().T + made.bias.float().abs()
    assert ((found - expected).abs() <= (8 * EPS + torch.finfo(dtype).eps * (dtype != torch.float32)) * size).all()


@given(seed=st.integers(0, 999), power=st.integers(-8, 8))
@settings(max_examples=30)
def test_powers_of_two_move_between_scales_and_amplifier_without_a_trace(seed, power):
    _, made = layer(seed=seed)
    _, one, _ = chosen(made, amplifier=2**12)
    made.scale.mul_(2.0**power)
    _, two, _ = chosen(made, amplifier=2 ** (12 - power))
    assert torch.equal(one, two)


def test_one_group_is_per_channel_quantization_with_a_rounded_scale():
    _, made = layer(group=64)
    scale = made.scale.clone()
    made = amplified(made, amplifier=2**20)
    assert made.scale.shape == (12, 1)
    assert ((made.float_scale() - scale).abs() <= 2.0**-21).all()


@given(seed=st.integers(0, 999), shifts=st.integers(2, 12), up=st.booleans())
@settings(max_examples=40)
def test_requantized_weights_are_never_worse_and_post_mode_leaves_them_untouched(seed, shifts, up):
    linear, made = layer(seed=seed)
    options = {"amplifier": 2**shifts, "zeroed": "keep", "rounding": "up" if up else "nearest"}
    q, multiplier, amplifier = chosen(made, linear, **options)
    assert torch.equal(q, made.integers())
    better, again, _ = chosen(made, linear, requantize=True, **options)
    assert torch.equal(again, multiplier)
    step = (multiplier.double() / amplifier.double()[:, None]).repeat_interleave(16, 1)
    errors = [(linear.weight.double() - values.double() * step).square() for values in (q, better)]
    assert (errors[1] <= errors[0] + 1e-15).all()


def test_rounding_up_never_clips():
    linear, made = layer()
    q, multiplier, amplifier = chosen(made, linear, rounding="up", requantize=True, amplifier=64)
    step = multiplier.double() / amplifier.double()[:, None]
    assert (step >= made.scale.double() * (1 - 1e-12)).all()
    assert q.abs().max() <= 7


# --- amplifiers -------------------------------------------------------------------------------------------------------


@given(exponent=st.floats(-25, 4), seed=st.integers(0, 99))
def test_heuristic_is_the_smallest_power_of_two_that_lifts_the_smallest_scale_to_one(exponent, seed):
    scale = 2.0**exponent * (1 + drawn(3, 4, seed).abs().double())
    alpha = heuristic(scale)
    assert alpha & (alpha - 1) == 0
    assert integer_scales(scale, torch.full((3,), alpha)).min() >= 1
    assert alpha * scale.min() >= 1
    assert alpha == 1 or alpha / 2 * scale.min() < 1


def test_heuristic_of_large_and_of_no_scales_is_one():
    assert heuristic(torch.tensor([[1.0, 3.0]])) == 1
    assert heuristic(torch.zeros(2, 2)) == 1
    assert heuristic(torch.tensor([[0.5]])) == 2


@pytest.mark.parametrize(("sigma", "at_256", "at_1024"), [(0.02, 1.95, 1.09), (0.01, 2.22, 1.38), (0.05, 1.24, 1.013)])
def test_predicted_inflation_is_the_measured_one_and_the_pages(sigma, at_256, at_1024):
    weight = drawn(256, 1024, 0, sigma, torch.float64)
    q, scale = quantize_groups(weight, 4, 128)
    for amplifier, stated in ((256, at_256), (1024, at_1024)):
        alpha = torch.full((256,), amplifier)
        step = (integer_scales(scale, alpha) / amplifier).double().repeat_interleave(128, 1)
        measured = (weight - q * step).square().sum() / (
            weight - q * scale.double().repeat_interleave(128, 1)
        ).square().sum()
        added, own = inflation(scale, q, alpha)
        assert 1 + float(added.sum() / own.sum()) == pytest.approx(float(measured), rel=0.05)
        assert float(measured) == pytest.approx(stated, rel=0.05)


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("budget", [0.3, 0.02, 0.001])
def test_error_budget_takes_the_smallest_amplifier_that_keeps_it(per, budget):
    _, made = layer(seed=4, spread=0.02, rows=40)
    _, _, amplifier = chosen(made, policy="error-budget", error_budget=budget, per=per)
    added, own = inflation(made.scale, made.integers(), amplifier)
    before, _ = inflation(made.scale, made.integers(), amplifier // 2)
    if per == "layer":
        assert amplifier.unique().numel() == 1
        added, own, before = added.sum(), own.sum(), before.sum()
    assert (added <= budget * own).all()
    assert (before > budget * own).all()


def test_heuristic_policy_is_at_least_the_amplifier():
    _, made = layer(spread=0.001)
    wanted = heuristic(made.scale)
    assert wanted > 1024
    assert chosen(made, policy="heuristic")[2].unique().tolist() == [wanted]
    assert chosen(layer(spread=50.0)[1], policy="heuristic", amplifier=64)[2].unique().tolist() == [64]


# --- overflow ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), group=st.sampled_from([4, 16, 64]), power=st.integers(0, 14))
@settings(max_examples=40)
def test_worst_sum_is_attained_and_never_exceeded(seed, group, power):
    _, made = layer(seed=seed, group=group)
    multiplier = integer_scales(made.scale, torch.full((12,), 2**power))
    worst, q = worst_sums(made.integers(), multiplier), made.integers()
    against = torch.where(q < 0, -127, 127).to(torch.int8)
    assert torch.equal(sums(against, q, multiplier).diagonal(), worst)
    others = torch.randint(-127, 128, (20, 64), generator=torch.Generator().manual_seed(seed))
    assert (sums(others, q, multiplier).abs() <= worst).all()


@pytest.mark.parametrize(("group", "safe"), [(128, 16_513), (64, 33_026)])
def test_pages_bound_on_the_sum_of_integers_is_the_worst_case_of_all_minus_eight(group, safe):
    q = torch.full((1, 2 * group), -8, dtype=torch.int8)
    for total, fits in ((safe, True), (safe + 1, False)):
        multiplier = torch.tensor([[total // 2, total - total // 2]])
        assert (int(worst_sums(q, multiplier)) <= INT32_MAX) == fits


def unsafe():
    """A layer whose scales overflow int32 at amplifier 1024, and inputs that show it."""
    linear, made = layer(columns=4096, rows=6, group=64, spread=20.0)
    return linear, made, torch.where(made.integers() < 0, -1.0, 1.0)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_overflow_is_seen_lowered_and_refused(per):
    _, made, x = unsafe()
    wild = integer_scales(made.scale, torch.full((6,), 1024))
    q = quantize_tokens(x)[0]
    assert (sums(q, made.integers(), wild).int() != sums(q, made.integers(), wild)).any(), "int32 must wrap here"
    with pytest.raises(FitError, match=r"the\.layer can overflow int32 with amplifier 1024"):
        chosen(made, overflow="refuse", per=per)
    q_NK, multiplier, amplifier = chosen(made, per=per)
    assert (amplifier < 1024).any()
    assert (worst_sums(q_NK, multiplier) <= INT32_MAX).all()
    doubled = integer_scales(made.scale, 2 * amplifier)  # the next larger one would not be safe
    assert (worst_sums(q_NK, doubled) > INT32_MAX).any()
    expected = sums(q, q_NK, multiplier)
    made.amplify(multiplier, amplifier)
    made.bias = None
    with torch.no_grad():
        assert torch.equal(made.from_stored(x), expected.float() / amplifier * quantize_tokens(x)[1])


def test_layer_that_no_amplifier_makes_safe_is_refused():
    _, made, _ = unsafe()
    made.scale.mul_(1e6)
    with pytest.raises(FitError, match="can overflow int32 with amplifier 1"):
        chosen(made)


@given(seed=st.integers(0, 99), group=st.sampled_from([16, 64, 128]))
@settings(max_examples=15)
def test_kernels_reference_has_the_same_bound_and_the_same_outputs_bit_by_bit(seed, group):
    _, made = layer(columns=128, group=group, seed=seed)
    made = amplified(made)
    packed = pack_weight(made.integers())
    assert accumulator_bound(packed, made.scale, group, 128) == worst_sums(made.integers(), made.scale).max()
    x = drawn(5, 128, seed + 1)
    q, scale = quantize_tokens(x)
    inverse = 1 / made.amplifier.float()
    with torch.no_grad():
        found = w4a8_gemm_integer(q, scale, packed, made.scale, inverse, group, made.bias.float(), torch.float32)
        assert torch.equal(made.from_stored(x), found)


# --- odd scales -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["nearest", "up"])
def test_negative_scales_keep_their_sign(rounding):
    _, made = layer()
    made.scale[::2] *= -1
    before, x = made.dequantized(torch.float64), drawn(5, 64, 1)
    with torch.no_grad():
        expected = made(x)
        found = amplified(made, amplifier=2**16, rounding=rounding)
        assert (found.scale[::2] < 0).all()
        assert (found.dequantized(torch.float64) - before).abs().max() <= 8 / 2**16
        assert (found(x) - expected).abs().max() <= 8 / 2**16 * x.abs().sum(1).max()


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_group_that_would_vanish_raises_the_amplifier_is_refused_or_kept(per):
    _, made = layer(rows=4)
    made.scale[1, 2] = 1e-5
    _, multiplier, amplifier = chosen(made, amplifier=64, per=per)
    assert multiplier[1, 2] == 1
    assert amplifier.tolist() == ([2**16] * 4 if per == "layer" else [64, 2**16, 64, 64])
    with pytest.raises(FitError, match=r"scale 1e-05, which amplifier 64 rounds to 0"):
        chosen(made, amplifier=64, per=per, zeroed="refuse")
    assert chosen(made, amplifier=64, per=per, zeroed="keep")[1][1, 2] == 0


def test_group_without_weights_asks_for_nothing():
    linear, _ = layer()
    linear.weight.data[:, 16:32] = 0
    made = QuantizedLinear.like(linear, bits=4, group=16, int8_activations=True)
    made.put(*quantize_groups(linear.weight, 4, 16), linear.bias)
    for policy in ("fixed", "heuristic", "error-budget"):
        assert chosen(made, policy=policy)[2].max() <= 4096
    q, _, _ = chosen(made, linear, requantize=True)
    assert (q[:, 16:32] == 0).all()


def test_requantizing_a_lost_group_gives_zeros():
    multiplier = torch.zeros(1, 1, dtype=torch.int64)
    assert requantized(torch.ones(1, 4), multiplier, torch.ones(1), 4).tolist() == [[0, 0, 0, 0]]


class Broken:
    """Round to nearest whose first layer gets a scale of `value`."""

    def __init__(self, value):
        self.base, self.value = BASE.build(), value

    def quantize(self, model, calibration, progress):
        reports = self.base.quantize(model, calibration, progress)
        quantized(model)[reports[0].name].scale[0, 0] = self.value
        return reports


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_scales_that_are_zero_or_not_finite_are_refused(value):
    quantizer = IntegerScaleConfig(base=BASE).build()
    quantizer.base = Broken(value)
    with pytest.raises(FitError, match=r"layers\.0\.self_attn\.q_proj has a scale that is zero or not finite"):
        quantizer.quantize(tiny_llama(), [])


@pytest.mark.parametrize("amplifier", [0, -1024, 1000, 2**31])
def test_amplifier_is_a_positive_power_of_two(amplifier):
    with pytest.raises(ConfigError):
        TestOnRTN.config(amplifier=amplifier)


def test_base_with_float_activations_is_a_misfit_and_refused():
    base = RTNConfig(scheme="w4a16", group_size=16)
    config = IntegerScaleConfig(base=base)
    assert "int8 activations" in next(fit.reason for fit in config.fit(TestOnRTN.context()) if not fit.ok)
    with pytest.raises(FitError, match="float activations"):
        config.build().quantize(tiny_llama(), [])


def test_integer_scales_of_integer_scales_are_refused():
    with pytest.raises(FitError, match="integer scales already"):
        IntegerScaleConfig(base=IntegerScaleConfig(base=BASE)).build().quantize(tiny_llama(), [])


def test_unresolved_base_is_refused():
    with pytest.raises(ConfigError, match=r"quantizer\.rtn is not resolved yet"):
        IntegerScaleConfig(base=Ref(use="quantizer.rtn")).build()


def test_report_says_the_amplifiers():
    reports = IntegerScaleConfig(base=BASE).build().quantize(tiny_llama(), [])
    assert {report.scheme for report in reports} == {"W4 g16, A8 per token, integer scales / 1024"}


def test_compiled_model_gives_the_eager_outputs():
    model = tiny_llama()
    IntegerScaleConfig(base=BASE).build().quantize(model, [])
    tokens = torch.arange(9)[None]
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(tokens, use_cache=False).logits
        expected = model(tokens, use_cache=False).logits
    torch._dynamo.reset()
    assert torch.equal(found, expected)
