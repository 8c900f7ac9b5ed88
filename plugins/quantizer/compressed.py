"""Quantized layers in the compressed-tensors format, which transformers, vLLM and llm-compressor read.

The format stores integers and float scales. Integer scales are written as what they stand for, scale / amplifier, and
how a layer unpacks its integers is its own affair, so neither is lost in value, only in speed.

Shape legend: N out features, K in features, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.plugins.quantizer.layers import quantized
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear

OWN = ("qweight", "scale", "amplifier", "input_scale")  # tensors of a quantized layer, replaced by the format's
PER_WORD = 8  # int4 in an int32


class Compressed(NamedTuple):
    """A model in the format.

    Attributes:
        state: tensors by name, all of the model.
        config: the `quantization_config` of its config.json.
        notes: what the format says differently from the model, for people.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    notes: tuple[str, ...]


def compressed(model: nn.Module, *, weights_only: bool = False) -> Compressed:
    """Return a quantized model's tensors and configuration in the compressed-tensors format.

    Int4 weights with float activations are `pack-quantized`: offset-binary nibbles in int32 words, low bits first. All
    others are `int-quantized`: a byte per weight. Scales stay float32.

    Args:
        model: with `QuantizedLinear` layers; not changed.
        weights_only: write activations as floats, which serves with more engines but computes something else.

    Raises:
        FitError: nothing is quantized; layers of both formats; a row that does not fill int32 words.
    """
    layers = quantized(model)
    if not layers:
        raise FitError("the model is not quantized", where="export", fix="quantize it first, or use format: hf")
    int8 = {path: layer.int8_activations and not weights_only for path, layer in layers.items()}
    packed = {layer.bits == 4 and not int8[path] for path, layer in layers.items()}
    if len(packed) > 1:
        raise FitError(
            "some layers have int8 activations or int8 weights and others do not; the format has one name for all",
            where="export",
            fix="quantize all layers alike, or set weights_only where all weights are int4",
        )
    state = _kept(model, layers)
    for path, layer in layers.items():
        state |= {f"{path}.{name}": tensor for name, tensor in _tensors(path, layer, True in packed).items()}
    schemes: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for path, layer in layers.items():
        scheme = _scheme(layer, int8[path])
        schemes.setdefault(repr(scheme), (scheme, []))[1].append(path)
    alone = len(schemes) == 1
    groups = {
        f"group_{number}": {"targets": ["Linear"] if alone else paths, **scheme}
        for number, (scheme, paths) in enumerate(schemes.values())
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if True in packed else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [path for path, module in model.named_modules() if type(module) is nn.Linear],
    }
    return Compressed(state, config, tuple(_notes(layers, int8)))


def _kept(model: nn.Module, layers: dict[str, QuantizedLinear]) -> dict[str, Tensor]:
    """Return what is not quantized; tied tensors under one name."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    own = {f"{path}.{name}" for path in layers for name in OWN}
    return {name: value.detach().cpu() for name, value in model.state_dict().items() if name not in tied | own}


def _tensors(path: str, layer: QuantizedLinear, packed: bool) -> dict[str, Tensor]:
    found = {"weight_scale": layer.float_scale().cpu()}
    if (static := _static(layer)) is not None:
        found["input_scale"] = static.cpu()
    if not packed:
        return found | {"weight": layer.integers().cpu()}
    if layer.in_features % PER_WORD:
        raise FitError(f"the {layer.in_features} in features of {path} do not fill int32 words", where="export")
    words = (layer.qweight ^ 0x88).contiguous().view(torch.int32)  # two's complement to offset binary, in place
    return found | {"weight_packed": words.cpu(), "weight_shape": torch.tensor([layer.out_features, layer.in_features])}


def _scheme(layer: QuantizedLinear, int8_activations: bool) -> dict[str, Any]:
    whole = layer.group == layer.in_features
    weights = {"num_bits": layer.bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "channel"} if whole else {"strategy": "group", "group_size": layer.group}
    if not int8_activations:
        return {"weights": weights}
    static = _static(layer) is not None
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor" if static else "token"}
    return {"weights": weights, "input_activations": inputs | {"dynamic": not static}}


def _static(layer: QuantizedLinear) -> Tensor | None:
    """Return the layer's scale for all inputs (1,), None where each token has its own."""
    held = getattr(layer, "input_scale", None)
    return held if held is not None and float(held) > 0 else None


def _notes(layers: dict[str, QuantizedLinear], int8: dict[str, bool]) -> Iterator[str]:
    if any(layer.amplifier is not None for layer in layers.values()):
        yield "integer scales are written as the float scales that they stand for: same weights, no integer epilogue"
    if any(layer.int8_activations and not int8[path] for path, layer in layers.items()):
        yield "int8 activations are left out on request: what reads this computes with float activations"
    if any(int8[path] and layer.bits == 4 for path, layer in layers.items()):
        yield (
            "int4 weights with int8 activations take a byte per weight in this format, and few GPU kernels serve it; "
            "weights_only gives int4 that Marlin kernels serve (VLLM_MARLIN_INPUT_DTYPE=int8 quantizes activations)"
        )
