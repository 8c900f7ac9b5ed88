"""`quantizer.gptq`: the slot's laws, blocks in order, and less output error than rounding to nearest."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from stackloom.core.errors import ConfigError, FitError
from stackloom.plugins.quantizer.gptq.config import GPTQConfig
from stackloom.plugins.quantizer.hessian import output_error
from stackloom.plugins.quantizer.rtn.config import RTNConfig
from stackloom.testing import QuantizerContract, llama_shape, tiny_llama

SHAPE = llama_shape(hidden=64, head_dim=16, intermediate=128)


class TestW4A16(QuantizerContract):
    plugin = "quantizer.gptq"
    options: ClassVar = {"group_size": 32}


class TestW4A8PerChannelInActOrder(QuantizerContract):
    plugin = "quantizer.gptq"
    options: ClassVar = {"scheme": "w4a8", "group_size": "channel", "act_order": True, "observe": "block"}


class TestSearchedScalesOnTheFullGrid(QuantizerContract):
    plugin = "quantizer.gptq"
    options: ClassVar = {"scales": "searched", "grid": "full", "group_size": 16}


def calibration(count=24):
    return [torch.randint(0, 97, (32,), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def dequantized(config, data):
    model = tiny_llama(SHAPE)
    quantizer = config.build()
    quantizer.quantize(model, data)
    quantizer.dequantize(model)
    return model


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"scales": "given"}, {"observe": "block"}])
def test_first_layer_loses_less_of_its_output_than_rounding_does(options):
    float_model = tiny_llama(SHAPE)
    ours = dequantized(GPTQConfig(group_size=32, **options), calibration())
    theirs = dequantized(RTNConfig(scheme="w4a16", group_size=32), [])
    with torch.no_grad():
        inner = float_model.model
        x = torch.cat([inner.layers[0].input_layernorm(inner.embed_tokens(row)) for row in calibration()])
    for name in ("q_proj", "k_proj", "v_proj"):
        weights = [getattr(model.model.layers[0].self_attn, name).weight for model in (float_model, ours, theirs)]
        hessian = 2 * x.T @ x / len(x)
        assert output_error(weights[0], weights[1], hessian) < 0.8 * output_error(weights[0], weights[2], hessian)


def test_later_layers_are_calibrated_on_the_quantized_prefix():
    """With `layer` down_proj sees what the quantized layers of its own block give; with `block` it does not."""
    found = [dequantized(GPTQConfig(group_size=32, observe=how), calibration(8)) for how in ("layer", "block")]
    first = [model.model.layers[0] for model in found]
    assert torch.equal(first[0].self_attn.q_proj.weight, first[1].self_attn.q_proj.weight)
    assert not torch.equal(first[0].mlp.down_proj.weight, first[1].mlp.down_proj.weight)


def test_head_outside_of_the_blocks_is_refused_before_any_change():
    config = GPTQConfig(exclude=(), group_size=32)
    model = tiny_llama(SHAPE)
    with pytest.raises(FitError, match="lm_head lies outside"):
        config.build().quantize(model, calibration(2))
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert any("lm_head lies outside" in fit.reason for fit in config.fit(TestW4A16.context()) if not fit.ok)


def test_dead_input_channel_gets_zero_weights():
    model = tiny_llama(SHAPE)
    model.model.layers[0].input_layernorm.weight.data[5] = 0
    GPTQConfig(group_size=32).build().quantize(model, calibration(4))
    assert (model.model.layers[0].self_attn.q_proj.integers()[:, 5] == 0).all()
    assert (model.model.layers[0].self_attn.q_proj.integers()[:, 6] != 0).any()


def test_bad_options_are_refused():
    for options in ({"damping": 0}, {"scales": "best"}, {"block_columns": 0}, {"observe": "model"}):
        with pytest.raises(ConfigError):
            TestW4A16.config(**options)
