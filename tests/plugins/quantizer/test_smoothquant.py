"""`quantizer.smoothquant`: the slot's laws, the migration formula, and where scales go."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.errors import ConfigError, FitError
from stackloom.plugins.quantizer.smoothquant.config import SmoothQuantConfig
from stackloom.plugins.quantizer.smoothquant.smoothquant import smoothing
from stackloom.testing import QuantizerContract, llama_shape, tiny_llama


class TestW8A8(QuantizerContract):
    plugin = "quantizer.smoothquant"
    logits_error, lowest_snr_db = 0.05, 40.0


class TestW4A8StaticWithEveryFold(QuantizerContract):
    plugin = "quantizer.smoothquant"
    options: ClassVar = {"scheme": "w4a8", "activations": "tensor", "fold": ["norm", "up", "value"], "group_size": 16}
    lowest_snr_db = 15.0


class TestWithBiasesAndExcludedLayers(QuantizerContract):
    plugin = "quantizer.smoothquant"
    options: ClassVar = {"exclude": ["*k_proj", "*o_proj", "*lm_head*"], "fold": ["norm", "up", "value"]}
    logits_error, lowest_snr_db = 0.05, 35.0

    @classmethod
    def shape(cls):
        return llama_shape(hidden=64, head_dim=16, intermediate=128, attention_bias=True, mlp_bias=True)


def drawn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 99), alpha=st.sampled_from([0.0, 0.25, 0.5, 0.85, 1.0]))
def test_smoothing_shares_the_range_between_inputs_and_weights(seed, alpha):
    """After it, channel j has max|x| = x^(1-a) w^(1-a) and max|w| = x^a w^a: equal at alpha one half."""
    largest_K, weights = drawn(6, seed=seed).abs() * 10, [drawn(5, 6, seed=seed + 1), drawn(3, 6, seed=seed + 2)]
    scale_K = smoothing(largest_K, weights, alpha, 1e-5)
    weight_K = torch.cat(weights).abs().amax(0)
    product_K = largest_K * weight_K
    torch.testing.assert_close(largest_K / scale_K, product_K ** (1 - alpha), rtol=1e-12, atol=0)
    torch.testing.assert_close(weight_K * scale_K, product_K**alpha, rtol=1e-12, atol=0)


def test_dead_channels_are_left_alone():
    scale_K = smoothing(torch.tensor([0.0, 4.0, 4.0]), [torch.tensor([[1.0, 0.0, 1.0]])], 0.5, 1e-5)
    assert scale_K.tolist() == [1.0, 1.0, 2.0]


def calibration():
    return [torch.arange(start, start + 20) for start in (0, 30)]


def test_only_norms_absorb_scales_by_default():
    model = tiny_llama(llama_shape(intermediate=64))
    reports = SmoothQuantConfig().build().quantize(model, calibration())
    assert {report.name.rpartition(".")[2]: report.strategy for report in reports} == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "equalized, per token"),
        **dict.fromkeys(("o_proj", "down_proj"), "per token"),
    }


def test_a_loud_channel_is_what_it_helps_with():
    """One norm channel is 100 times as loud: plain W8A8 loses the others, smoothing keeps them."""
    errors = {}
    for alpha in (0.0, 0.5):
        model = tiny_llama(llama_shape(intermediate=64))
        for block in model.model.layers:
            block.input_layernorm.weight.data[3] = 100.0
        config = SmoothQuantConfig(alpha=alpha, fold=("norm",) if alpha else ())
        reports = config.build().quantize(model, calibration())
        errors[alpha] = max(report.output_error for report in reports if report.name.endswith("k_proj"))
    assert errors[0.5] < errors[0.0] / 3


def test_bad_input_is_refused():
    for options in ({"alpha": 1.5}, {"scheme": "w4a16"}, {"fold": ["head"]}):
        with pytest.raises(ConfigError):
            TestW8A8.config(**options)
    with pytest.raises(FitError, match="beyond the vocabulary"):
        SmoothQuantConfig().build().quantize(tiny_llama(), [torch.tensor([5, 97])])
    with pytest.raises(FitError, match="not token ids"):
        SmoothQuantConfig().build().quantize(tiny_llama(), [torch.rand(5)])
    context = TestW8A8.context().model_copy(update={"neighbours": ("quantizer.smoothquant",)})
    assert [fit.reason for fit in SmoothQuantConfig().fit(context) if not fit.ok] == [
        "it calibrates on data, and the quantize stage names none: give it data"
    ]
