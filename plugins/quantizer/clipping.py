"""Symmetric weight clipping: smaller grids for each row or group, learned on a block's output or searched for.

Plain weight error is no judge: it cuts the few large weights that make massive activations. Both methods here look at
what the weights are multiplied with.

Shape legend: N out features, K in features, G groups of a row, g weights of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.plugins.quantizer.blocks import Block
from stackloom.plugins.quantizer.grid import SMALLEST_SCALE, largest


def clipped_scale(weight_NGg: Tensor, gamma_NG: Tensor | float, beta_NG: Tensor | float, bits: int) -> Tensor:
    """Return max(|gamma max w|, |beta min w|) / (2^(b-1) - 1) (N, G); that of round to nearest at gamma = beta = 1.

    The larger side decides, so it alone gets a gradient.

    Source: OdysseyLLM, symmetric learnable weight clipping.
    """
    high, low = gamma_NG * weight_NGg.amax(2), beta_NG * weight_NGg.amin(2)
    return (torch.maximum(high.abs(), low.abs()) / largest(bits)).clamp_min(SMALLEST_SCALE)


def round_through(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


def fake_quantized(weight_NGg: Tensor, scale_NG: Tensor, bits: int) -> Tensor:
    """Return clamp(round(w / s), -2^(b-1), 2^(b-1) - 1) s, differentiable; the clamp passes gradients inside only."""
    scale = scale_NG[..., None]
    return round_through(weight_NGg / scale).clamp(-largest(bits) - 1, largest(bits)) * scale


def search_clipping(
    weight_NK: Tensor, importance_K: Tensor, *, bits: int, group: int, lowest: float = 0.5, points: int = 26
) -> Tensor:
    """Return the scales of the clip ratios in [lowest, 1] with the least sum of h_k (w - w_hat)^2, row by row.

    Args:
        weight_NK: (N, K) floats.
        importance_K: (K,) h, the diagonal of the inputs' second moments; zero where an input is dead.
        bits, group: of the grid.
        lowest, points: the ratios tried, evenly spaced; the unclipped grid is always among them.

    Returns:
        (N, G) float32.
    """
    rows, columns = weight_NK.shape
    weight_NGg = weight_NK.float().reshape(rows, columns // group, group)
    importance_Gg = importance_K.float().reshape(columns // group, group)
    best_NG = clipped_scale(weight_NGg, 1.0, 1.0, bits)
    least_NG = torch.full_like(best_NG, torch.inf)
    for ratio in torch.linspace(1.0, lowest, points).tolist():
        scale_NG = clipped_scale(weight_NGg, ratio, ratio, bits)
        error_NG = ((weight_NGg - fake_quantized(weight_NGg, scale_NG, bits)).square() * importance_Gg).sum(2)
        best_NG = torch.where(error_NG < least_NG, scale_NG, best_NG)
        least_NG = torch.minimum(error_NG, least_NG)
    return best_NG


@dataclass(frozen=True)
class Learning:
    """How clipping is learned.

    Attributes:
        epochs: passes over the calibration sequences.
        learning_rate: of AdamW without weight decay.
        initial_logit: both logits at the start; 4 clips at sigmoid(4) = 0.982.
        int8_activations: whether the block's linears see their inputs quantized per token, as they will.
        auxiliary: whether the loss on the float model's inputs is added.
    """

    epochs: int
    learning_rate: float
    initial_logit: float
    int8_activations: bool
    auxiliary: bool


def learn_clipping(
    block: Block,
    linears: Mapping[str, nn.Linear],
    float_inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    bits: int,
    group: int | None,
    learning: Learning,
) -> tuple[dict[str, Tensor], list[float]]:
    """Learn one pair of clip ratios per row or group from the mean squared error of a block's output.

    Args:
        block: float weights; its inputs come from the quantized prefix. Not changed.
        linears: its linear layers by name within the block.
        float_inputs, targets: per sequence (1, T, D), what enters and leaves the block in the float model.
        bits, group: of the grid; None is a whole row.
        learning: how.

    Returns:
        scales (N, G) float32 by name, and the mean loss of each epoch.

    Raises:
        FitError: the loss is not finite.
    """
    grouped = {name: _grouped(linear.weight, group) for name, linear in linears.items()}
    logits = {
        name: torch.full((2, *weight.shape[:2]), learning.initial_logit, device=weight.device, requires_grad=True)
        for name, weight in grouped.items()
    }
    optimizer = torch.optim.AdamW(logits.values(), lr=learning.learning_rate, weight_decay=0.0)
    losses = []
    with torch.enable_grad(), _quantized_inputs(linears.values() if learning.int8_activations else ()):
        for _ in range(learning.epochs):
            total = 0.0
            for index, target in enumerate(targets):
                tensors = {
                    f"{name}.weight": fake_quantized(weight, _learned_scale(weight, logits[name], bits), bits)
                    .reshape(linears[name].weight.shape)
                    .to(linears[name].weight.dtype)
                    for name, weight in grouped.items()
                }
                places = [block.inputs[index], *([float_inputs[index]] if learning.auxiliary else [])]
                loss = sum(
                    ((block.run(index, place, tensors) - target).float().square().mean() for place in places),
                    torch.zeros((), device=target.device),
                )
                # a layer that no token of this sequence reaches has no part in the loss, and learns nothing from it
                gradients = torch.autograd.grad(loss, list(logits.values()), allow_unused=True, materialize_grads=True)
                for parameter, gradient in zip(logits.values(), gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                total += float(loss.detach())
            losses.append(total / len(targets))
            if not torch.isfinite(torch.tensor(losses[-1])):
                raise FitError(f"the clipping loss of {block.path} is not finite", fix="lower learning_rate")
    with torch.no_grad():
        return {name: _learned_scale(weight, logits[name], bits) for name, weight in grouped.items()}, losses


def _grouped(weight_NK: Tensor, group: int | None) -> Tensor:
    rows, columns = weight_NK.shape
    return weight_NK.detach().float().reshape(rows, -1, group or columns)


def _learned_scale(weight_NGg: Tensor, logits_2NG: Tensor, bits: int) -> Tensor:
    gamma_NG, beta_NG = torch.sigmoid(logits_2NG)
    return clipped_scale(weight_NGg, gamma_NG, beta_NG, bits)


@contextmanager
def _quantized_inputs(linears: Any) -> Iterator[None]:
    """Let linear layers see what int8 per token leaves of their inputs, with the gradient of the identity."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        (x,) = args
        scale = (x.detach().float().abs().amax(-1, keepdim=True) / largest(8)).clamp_min(SMALLEST_SCALE)
        return ((round_through(x.float() / scale) * scale).to(x.dtype),)

    handles = [linear.register_forward_pre_hook(hook) for linear in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
