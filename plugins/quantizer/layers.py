"""Finding a model's linear layers, checking them, and exchanging them for quantized ones and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.core.slots.quantizer import LayerReport
from stackloom.plugins.quantizer.linear_config import LinearQuantizerConfig
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.plugins.quantizer.selection import legal_groups, selects


def quantized(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Return the model's quantized layers by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def find_linears(model: nn.Module, include: Sequence[str], exclude: Sequence[str], where: str) -> dict[str, nn.Linear]:
    """Return the linear layers that the patterns select, in the model's order.

    Raises:
        FitError: the model is quantized already, by us or by what transformers read it with; no layer is selected; or
            one shares its weight with another module.
    """
    if held := quantized(model):
        raise FitError(f"{next(iter(held))} is quantized already", where=where, fix="quantize the float model once")
    if getattr(model, "is_quantized", False):  # transformers' flag; some formats only unpack with the first call
        raise FitError("the model was read from quantized weights", where=where, fix="quantize the float model")
    every = {path: module for path, module in model.named_modules() if type(module) is nn.Linear}
    found = {path: module for path, module in every.items() if selects(path, include, exclude)}
    if not found:
        others = [path for path, module in model.named_modules() if type(module).__name__ == "Conv1D"]
        reason = f"no linear layer is selected of the model's {len(every)}"
        raise FitError(
            f"{reason}; {len(others)} Conv1D layers such as {others[0]} are not supported" if others else reason,
            where=where,
            fix="quantize a model with nn.Linear layers" if others else "change include or exclude",
        )
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path, linear in found.items():
        if others := [name for name in owners[id(linear.weight)] if name != f"{path}.weight"]:
            raise FitError(f"{path} shares its weight with {others[0]}", where=where, fix="exclude it")
    return found


def check_groups(linears: dict[str, nn.Linear], group: int | None, where: str) -> None:
    """Refuse a group size that does not divide every layer's in features; None is a whole row.

    Raises:
        FitError: names the first layer and the sizes that would do.
    """
    for path, linear in linears.items():
        if group is not None and linear.in_features % group:
            legal = ", ".join(map(str, legal_groups([linear.in_features for linear in linears.values()]))) or "none"
            raise FitError(
                f"group_size {group} does not divide the {linear.in_features} in features of {path}",
                where=where,
                fix=f"sizes that divide every selected layer: {legal}",
            )


def check_config(linears: dict[str, nn.Linear], config: LinearQuantizerConfig, where: str) -> None:
    """Refuse layers that the config's groups do not divide.

    Raises:
        FitError: names the first layer and the sizes that would do.
    """
    if wrong := config.misfit({path: linear.in_features for path, linear in linears.items()}):
        raise FitError(wrong[0], where=where, fix=wrong[1])


def check_weights(linears: dict[str, nn.Linear], where: str) -> None:
    """Refuse weights that no grid can hold, before anything is changed.

    Raises:
        FitError: names the layer.
    """
    for path, linear in linears.items():
        if not linear.weight.is_floating_point():
            raise FitError(f"{path} holds {linear.weight.dtype} weights", where=where, fix="exclude it")
        if not torch.isfinite(linear.weight).all():
            raise FitError(f"the weight of {path} is not finite", where=where, fix="repair the model")
        if linear.weight.abs().max() > torch.finfo(torch.float32).max:
            raise FitError(f"the weight of {path} exceeds float32", where=where, fix="repair the model")


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def report(
    path: str, linear: nn.Linear, layer: QuantizedLinear, scheme: str, snr_db: float, **measured: Any
) -> LayerReport:
    """Return what happened to a layer, its bytes as they are held.

    Args:
        path: of the layer.
        linear, layer: before and after.
        scheme, snr_db: as in the report.
        measured: its optional fields.
    """
    return LayerReport(path, scheme, snr_db, _bytes(linear), _bytes(layer), **measured)


@torch.no_grad()
def output_error(linear: nn.Linear, layer: nn.Module, x_SK: Tensor) -> float | None:
    """Return the squared error of a layer's output on inputs (S, K), as a fraction of the float output's square.

    None without inputs. Inputs are cast to the float layer's dtype, in which both run.
    """
    if not len(x_SK):
        return None
    x_SK = x_SK.to(linear.weight.dtype)
    expected = linear(x_SK).float()
    noise = (layer(x_SK).float() - expected).double().square().sum().item()
    signal = expected.double().square().sum().item()
    return noise / signal if signal else 0.0


def _bytes(module: nn.Module) -> int:
    held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def dequantize(model: nn.Module, where: str) -> None:
    """Put plain linear layers with the dequantized weights, in the layers' float dtype, back in their places.

    Raises:
        FitError: nothing is quantized.
    """
    found = quantized(model)
    if not found:
        raise FitError("the model is not quantized", where=where)
    for path, layer in found.items():
        linear = nn.utils.skip_init(
            nn.Linear, layer.in_features, layer.out_features, bias=False, device=layer.scale.device, dtype=layer.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(layer.dequantized(layer.dtype))
        linear.bias = layer.bias
        put(model, path, linear.train(layer.training))
