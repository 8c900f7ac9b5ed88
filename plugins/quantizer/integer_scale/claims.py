"""Integer against float scales over amplifiers, the predicted weight error, and how far sums are from overflowing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.core.statistics import mean_interval
from stackloom.plugins.quantizer.integer_scale.amplification import (
    INT32_MAX,
    inflation,
    integer_scales,
    worst_sums,
)
from stackloom.plugins.quantizer.layers import quantized
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.plugins.quantizer.subjects import TEXT, losses, rows, subjects, table

BASE = {"use": "quantizer.rtn", "scheme": "w4a8", "group_size": 64}
AMPLIFIERS = {"cpu": (128, 512, 1024, 4096), "cpu-full": (128, 1024, 4096), "gpu": (128, 256, 512, 1024, 2048, 4096)}
LARGEST_RATIO, LARGEST_MISS = 1.01, 0.1


def amplifier_1024_keeps_perplexity(ctx: ClaimContext) -> ClaimResult:
    """Perplexity with integer scales at 1024 over that with float scales, of the subject that loses more."""
    found, tables, curves = [], [], []
    for subject, checkpoint in subjects(ctx).items():
        floats = losses(ctx, checkpoint, BASE)
        arms = {"float scales": floats}
        arms |= {f"/ {alpha}": losses(ctx, checkpoint, _arm(amplifier=alpha)) for alpha in AMPLIFIERS[ctx.scale]}
        if ctx.scale != "cpu":
            arms["heuristic alone"] = losses(ctx, checkpoint, _arm(policy="heuristic", amplifier=1))
        if ctx.scale == "gpu":
            arms["error budget 2 %"] = losses(ctx, checkpoint, _arm(policy="error-budget"))
            arms["/ 128, requantized"] = losses(ctx, checkpoint, _arm(amplifier=128, requantize=True))
        found.append(mean_interval([a - b for a, b in zip(arms["/ 1024"], floats, strict=True)]))
        tables.append(table(subject, arms))
        curves.append(_curve(subject, arms, AMPLIFIERS[ctx.scale]))
    most = max(found, key=lambda difference: difference["value"])
    low, high = map(math.exp, most["interval"])
    return ClaimResult(
        ours=math.exp(most["value"]),
        interval=(low, high),
        baseline=LARGEST_RATIO,
        seeds=ctx.seeds[:1],
        details={"tables": tables, "curves": curves},
    )


def error_follows_the_formula(ctx: ClaimContext) -> ClaimResult:
    """Largest distance of a model's measured weight error from the predicted one, as a fraction of it."""
    misses, lines = [], []
    for subject, checkpoint in subjects(ctx).items():
        for alpha in AMPLIFIERS[ctx.scale]:
            added = own = measured = base = 0.0
            for layer, weight_NK in _layers(ctx, checkpoint):
                amplifier_N = torch.full((layer.out_features,), alpha)
                multiplier_NG = integer_scales(layer.scale, amplifier_N)
                predicted = inflation(layer.scale, layer.integers(), amplifier_N)
                added, own = added + float(predicted[0].sum()), own + float(predicted[1].sum())
                base += _error(weight_NK, layer, layer.scale)
                measured += _error(weight_NK, layer, multiplier_NG / alpha)
            misses.append(abs(measured / base / (1 + added / own) - 1))
            lines.append([subject, alpha, measured / base, 1 + added / own])
    columns = ["subject", "amplifier", "measured", "predicted"]
    details = {"tables": [{"title": "Growth of the weights' squared error", "columns": columns, "rows": lines}]}
    return ClaimResult(ours=max(misses), baseline=LARGEST_MISS, seeds=ctx.seeds[:1], details=details)


def no_sum_can_overflow(ctx: ClaimContext) -> ClaimResult:
    """The largest sum that any input can reach in any layer at 1024, over what int32 holds."""
    worst, lines = [], []
    for subject, checkpoint in subjects(ctx).items():
        proved = max(
            int(
                worst_sums(layer.integers(), integer_scales(layer.scale, torch.full((layer.out_features,), 1024))).max()
            )
            for layer, _ in _layers(ctx, checkpoint)
        )
        worst.append(proved / INT32_MAX)
        lines.append([subject, proved / INT32_MAX, _reached(ctx, checkpoint) / INT32_MAX])
    columns = ["subject", "largest possible", "largest on held-out text"]
    details = {"tables": [{"title": "Sums at amplifier 1024, of int32", "columns": columns, "rows": lines}]}
    return ClaimResult(ours=max(worst), baseline=1.0, seeds=ctx.seeds[:1], details=details)


def _arm(**options: Any) -> dict[str, Any]:
    return {"use": "quantizer.integer-scale", "base": BASE, **options}


def _layers(ctx: ClaimContext, checkpoint: str) -> Iterator[tuple[QuantizedLinear, torch.Tensor]]:
    """Yield the base's layers with the float weights that they were made of."""
    model, _ = ctx.model(checkpoint, dtype="float32")
    weights = {name: module.weight for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    ctx.component(BASE["use"], scheme=BASE["scheme"], group_size=BASE["group_size"]).quantize(model, [])
    for path, layer in quantized(model).items():
        yield layer, weights[path].detach()


def _error(weight_NK: torch.Tensor, layer: QuantizedLinear, scale_NG: torch.Tensor) -> float:
    found = layer.integers().double() * scale_NG.double().repeat_interleave(layer.group, 1)
    return float((weight_NK.double() - found).square().sum())


def _reached(ctx: ClaimContext, checkpoint: str) -> int:
    """Return the largest magnitude of a layer's integer sums on two held-out sequences."""
    model, tokenizer = ctx.model(checkpoint, dtype="float32")
    ctx.component("quantizer.integer-scale", base=BASE).quantize(model, [])
    largest = [0]

    def see(layer: QuantizedLinear, args: tuple[torch.Tensor]) -> None:
        q_MK, _ = layer.quantize_input(args[0].reshape(-1, layer.in_features))
        amplified_NK = layer.integers().double() * layer.scale.double().repeat_interleave(layer.group, 1)
        largest[0] = max(largest[0], int((q_MK.double() @ amplified_NK.T).abs().max()))

    for layer in quantized(model).values():
        layer.register_forward_pre_hook(see)
    with torch.no_grad():
        for row in rows(ctx, tokenizer, TEXT, 2):
            model(row[None].to(model.device), use_cache=False)
    return largest[0]


def _curve(subject: str, arms: dict[str, list[float]], amplifiers: tuple[int, ...]) -> dict[str, Any]:
    means = {name: math.fsum(found) / len(found) for name, found in arms.items()}
    return {
        "title": f"{subject}: integer against float scales",
        "across": "amplifier (log2)",
        "up": "nats per token",
        "x": [math.log2(alpha) for alpha in amplifiers],
        "series": {
            "integer scales": [means[f"/ {alpha}"] for alpha in amplifiers],
            "float scales": [means["float scales"]] * len(amplifiers),
        },
    }
