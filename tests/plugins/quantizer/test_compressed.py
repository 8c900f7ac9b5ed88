"""The compressed-tensors format: judged by the package of that name and by transformers, not by ourselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from stackloom.core.errors import FitError
from stackloom.plugins.quantizer.compressed import compressed
from stackloom.plugins.quantizer.layers import quantized
from stackloom.testing import llama_shape, relative_error, tiny_llama
from stackloom.testing.lookup import build

pack = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
SHAPE = llama_shape(hidden=64, head_dim=16, intermediate=128)
SCHEMES = {
    "w4a16 in groups": ("quantizer.rtn", {"scheme": "w4a16", "group_size": 16}),
    "w4a16 per channel": ("quantizer.rtn", {"scheme": "w4a16", "group_size": "channel"}),
    "w4a8 in groups": ("quantizer.rtn", {"scheme": "w4a8", "group_size": 32}),
    "w4a8 per channel, sixteenfold": ("quantizer.odyssey", {"clipping": "search"}),
    "w8a8": ("quantizer.rtn", {"scheme": "w8a8"}),
    "integer scales": (
        "quantizer.integer-scale",
        {"base": {"use": "quantizer.rtn", "scheme": "w4a8", "group_size": 16}},
    ),
    "w4a8 of the MLPs": ("quantizer.rtn", {"scheme": "w4a8", "group_size": 16, "include": ["*.mlp.*"]}),
}


def tokens(seed=0):
    return torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(seed))


def logits(model):
    with torch.no_grad():
        return model(tokens(), use_cache=False).logits


def model_of(name, dtype=torch.float32, shape=SHAPE):
    plugin, options = SCHEMES[name]
    model = tiny_llama(shape, dtype)
    calibration = [row for seed in range(4) for row in tokens(seed)]
    build(plugin, **options).quantize(model, calibration if "odyssey" in plugin else [])
    return model


def written(model, folder: Path, **options):
    """Write a model as the export stage does and return what transformers makes of it."""
    found = compressed(model, **options)
    config = model.config
    config.quantization_config = found.config
    config.save_pretrained(folder)
    del config.quantization_config
    save_file(
        {name: value.contiguous() for name, value in found.state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    assert not any(report.values()), report
    return loaded.eval()


@pytest.mark.parametrize("name", SCHEMES)
def test_package_reads_the_same_weights_bit_by_bit(name, tmp_path):
    model = model_of(name)
    loaded = written(model, tmp_path)
    logits(loaded)  # the package unpacks with the first call
    assert quantized(model)
    for path, layer in quantized(model).items():
        assert torch.equal(loaded.get_submodule(path).weight, layer.dequantized(torch.float32)), path
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            assert torch.equal(loaded.get_submodule(path).weight, module.weight), path


@pytest.mark.parametrize("name", ["w4a16 in groups", "w4a16 per channel"])
def test_logits_of_float_activations_are_ours_bit_by_bit(name, tmp_path):
    model = model_of(name)
    assert torch.equal(logits(written(model, tmp_path)), logits(model))


@pytest.mark.parametrize("name", ["w4a8 in groups", "w4a8 per channel, sixteenfold", "w8a8", "integer scales"])
def test_logits_of_int8_activations_differ_by_activation_rounding_alone(name, tmp_path):
    """The package rounds inputs to multiples of max / 127.5, we to max / 127: as far apart as either is from floats.

    Two independent roundings differ by sqrt(2) of one; twice is the bound.
    """
    model = model_of(name)
    loaded = written(model, tmp_path)
    build(SCHEMES[name][0], **SCHEMES[name][1]).dequantize(exact := model_of(name))
    ours, theirs, floats = logits(model), logits(loaded), logits(exact)
    rounding = relative_error(ours, floats)
    assert 0 < relative_error(theirs, floats) < 2 * rounding
    assert 0 < relative_error(theirs, ours) < 2 * rounding


@pytest.mark.parametrize("name", ["w4a8 in groups", "w4a8 per channel, sixteenfold", "integer scales"])
def test_weights_only_is_the_model_with_float_activations(name, tmp_path):
    model = model_of(name)
    loaded = written(model, tmp_path, weights_only=True)
    build(SCHEMES[name][0], **SCHEMES[name][1]).dequantize(model)
    assert torch.equal(logits(loaded), logits(model))


def test_bfloat16_reader_rounds_scales_and_no_more(tmp_path):
    model = model_of("w4a16 in groups", torch.bfloat16)
    loaded = written(model, tmp_path)
    logits(loaded)
    eps = torch.finfo(torch.bfloat16).eps
    for path, layer in quantized(model).items():
        exact = layer.dequantized(torch.float64)
        found = loaded.get_submodule(path).weight.double()
        assert ((found - exact).abs() <= eps * exact.abs() * (1 + eps)).all(), (
            path
        )  # the scale's half, the product's half


def test_packed_words_are_the_packages():
    model = model_of("w4a16 in groups")
    found = compressed(model)
    for path, layer in quantized(model).items():
        words = found.state[f"{path}.weight_packed"]
        assert torch.equal(words, pack.pack_to_int32(layer.integers(), 4))
        assert torch.equal(
            pack.unpack_from_int32(words, 4, torch.Size([layer.out_features, layer.in_features])), layer.integers()
        )
        assert found.state[f"{path}.weight_shape"].tolist() == [layer.out_features, layer.in_features]


def test_format_and_scheme_follow_the_layers():
    formats = {name: compressed(model_of(name)).config for name in SCHEMES}
    assert {name: config["format"] for name, config in formats.items() if config["format"] == "pack-quantized"} == {
        "w4a16 in groups": "pack-quantized",
        "w4a16 per channel": "pack-quantized",
    }
    group = formats["w4a8 in groups"]["config_groups"]["group_0"]
    assert (group["weights"]["strategy"], group["weights"]["group_size"], group["weights"]["num_bits"]) == (
        "group",
        32,
        4,
    )
    assert group["input_activations"] == {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }
    assert "input_activations" not in formats["w4a16 in groups"]["config_groups"]["group_0"]
    assert formats["w8a8"]["config_groups"]["group_0"]["weights"]["strategy"] == "channel"
    assert formats["w8a8"]["ignore"] == ["lm_head"]


def test_what_the_format_cannot_say_is_said():
    notes = " ".join(compressed(model_of("integer scales")).notes)
    assert "integer scales are written as the float scales" in notes
    assert "a byte per weight" in notes
    assert "left out on request" in " ".join(compressed(model_of("w4a8 in groups"), weights_only=True).notes)
    assert compressed(model_of("w4a16 in groups")).notes == ()


def test_model_is_not_changed():
    model = model_of("integer scales")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compressed(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_head_is_written_once(tmp_path):
    model = model_of("w4a8 in groups", shape=SHAPE.model_copy(update={"tied": True}))
    assert "lm_head.weight" not in compressed(model).state
    assert written(model, tmp_path).lm_head.weight.shape == (97, 64)


def test_layers_of_both_formats_are_refused():
    model = model_of("w4a8 of the MLPs")
    for layer in list(quantized(model).values())[::2]:
        layer.int8_activations = False
    with pytest.raises(FitError, match="one name for all"):
        compressed(model)
    assert compressed(model, weights_only=True).config["format"] == "pack-quantized"


@pytest.mark.parametrize("name", ["w4a16 in groups", "w8a8"])
@pytest.mark.parametrize(
    "plugin",
    [
        "quantizer.rtn",
        "quantizer.smoothquant",
        "quantizer.awq",
        "quantizer.gptq",
        "quantizer.fptq",
        "quantizer.odyssey",
    ],
)
def test_a_model_that_was_read_from_quantized_weights_is_refused_before_its_first_call_and_after(
    plugin, name, tmp_path
):
    loaded = written(model_of(name), tmp_path)
    for call in (lambda model: None, logits):
        call(loaded)
        with pytest.raises(FitError, match="read from quantized weights"):
            build(plugin).quantize(loaded, list(tokens()))


def test_float_model_and_ragged_rows_are_refused():
    with pytest.raises(FitError, match="not quantized"):
        compressed(tiny_llama())
    model = tiny_llama(llama_shape(intermediate=36))
    build("quantizer.rtn", scheme="w4a16", group_size="channel").quantize(model, [])
    with pytest.raises(FitError, match=r"36 in features of .*down_proj do not fill int32 words"):
        compressed(model)
