"""`quantizer.awq`: the slot's laws, the search against its definition, and less output error than rounding."""

from typing import ClassVar

import pytest
import torch

from stackloom.core.errors import ConfigError
from stackloom.plugins.quantizer.awq.awq import clipped_scales, strength_scale
from stackloom.plugins.quantizer.awq.config import AWQConfig
from stackloom.plugins.quantizer.grid import dequantize_groups, group_scales, round_to
from stackloom.plugins.quantizer.hessian import output_error
from stackloom.testing import QuantizerContract, llama_shape, tiny_llama

SHAPE = llama_shape(hidden=64, head_dim=16, intermediate=128)


class TestW4A16(QuantizerContract):
    plugin = "quantizer.awq"
    options: ClassVar = {"group_size": 32}


class TestW4A8OnNormsWithoutClipping(QuantizerContract):
    plugin = "quantizer.awq"
    options: ClassVar = {"scheme": "w4a8", "fold": ["norm"], "clip": False, "grid": "full", "strengths": 5}


def calibration(count=8):
    return [torch.randint(0, 97, (32,), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_strength_zero_is_no_scale_and_scales_are_centred():
    magnitude = torch.tensor([0.0, 0.5, 8.0])
    assert strength_scale(magnitude, 0.0).tolist() == [1.0, 1.0, 1.0]
    scale = strength_scale(magnitude, 0.5)
    assert (scale.max() * scale.min()).item() == pytest.approx(1.0)
    assert (scale[2] / scale[1]).item() == pytest.approx(4.0)


def test_clipping_finds_the_best_ratio_of_each_row_and_group():
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(80, 16, generator=draw), torch.randn(3, 16, generator=draw) ** 3
    hessian, ratios = 2 * x.T @ x / 80, [1.0, 0.8, 0.6]
    found = clipped_scales(weight, hessian, 4, 8, ratios, full=False)
    widest = group_scales(weight, 4, 8)
    for row in range(3):
        for group in range(2):
            part, part_x = weight[row : row + 1, group * 8 : group * 8 + 8], x[:, group * 8 : group * 8 + 8]
            lost = {}
            for ratio in ratios:
                scale = widest[row : row + 1, group : group + 1] * ratio
                value = dequantize_groups(round_to(part, scale, 4), scale, torch.float32)
                lost[ratio] = ((part_x @ (value - part).T) ** 2).sum().item()
            best = min(lost, key=lost.__getitem__)
            assert found[row, group].item() == pytest.approx((widest[row, group] * best).item())


def loud():
    """A model whose norms have one channel 40 times as loud as the others."""
    model = tiny_llama(SHAPE)
    for block in model.model.layers:
        block.input_layernorm.weight.data[7] = 40.0
        block.post_attention_layernorm.weight.data[9] = 40.0
    return model


def errors(**options):
    reports = AWQConfig(group_size=32, **options).build().quantize(loud(), calibration())
    return {report.name: report.output_error for report in reports}


def test_scales_and_clipping_each_lose_less_of_the_outputs():
    """Against the one strength that is no scale at all: round to nearest."""
    rounded = errors(strengths=1, clip=False)
    scaled, clipped = errors(clip=False), errors(strengths=1)
    for name in ("q_proj", "gate_proj"):
        path = next(path for path in rounded if path.endswith(name))
        assert scaled[path] < 0.7 * rounded[path]
    assert sum(clipped.values()) < sum(rounded.values())
    assert clipped["model.layers.0.self_attn.q_proj"] == rounded["model.layers.0.self_attn.q_proj"]


def test_search_keeps_the_strength_with_the_least_output_error():
    """With a single candidate beside no scale, it is taken exactly where it is better on the layer's own inputs."""
    model, plain = loud(), loud()
    AWQConfig(group_size=32, strengths=2, clip=False, fold=("norm",)).build().quantize(model, calibration())
    with torch.no_grad():
        x = torch.cat([plain.model.layers[0].input_layernorm(plain.model.embed_tokens(row)) for row in calibration()])
    hessian = 2 * x.T @ x / len(x)
    divided = plain.model.layers[0].input_layernorm.weight / model.model.layers[0].input_layernorm.weight
    candidate = strength_scale(x.abs().mean(0), 0.5)
    lost = []
    for scale in (torch.ones(64).double(), candidate):
        total = 0.0
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(plain.model.layers[0].self_attn, name).weight.double()
            grid = group_scales(weight * scale, 4, 32)
            value = dequantize_groups(round_to(weight * scale, grid, 4), grid, torch.float64) / scale
            total += output_error(weight, value, hessian) * ((weight.float() @ hessian) * weight).sum().item()
        lost.append(total)
    assert lost[1] < lost[0]
    torch.testing.assert_close(divided.double(), candidate, rtol=1e-5, atol=0)


def test_bad_options_are_refused():
    for options in ({"strengths": 0}, {"clip_lowest": 0.0}, {"scheme": "w8a8"}, {"clip_steps": 1}):
        with pytest.raises(ConfigError):
            TestW4A16.config(**options)
