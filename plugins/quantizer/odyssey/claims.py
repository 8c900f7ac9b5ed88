"""The recipe's order, its standing against groups, and the exactness of its conversion."""

from __future__ import annotations

from typing import Any

import torch

from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.plugins.quantizer.layers import quantized
from stackloom.plugins.quantizer.odyssey.sixteenfold import SixteenfoldLinear
from stackloom.plugins.quantizer.subjects import EMBEDDED, TEXT, TRAINING, rows, smallest_gain

ROUNDED, CLIPPED, WHOLE = "round to nearest", "+ learned clipping", "+ learned clipping + compensation"
GROUPS = "round to nearest, groups of 64"
SHORT = {"epochs": 3, "learning_rate": 0.1}  # 24 steps a block, each of at most the learning rate
LEARNING = {"cpu": SHORT, "cpu-full": SHORT, "gpu": {"epochs": 10, "learning_rate": 1e-2}}


def clipping_beats_rounding(ctx: ClaimContext) -> ClaimResult:
    """Loss of per-channel W4A8 without clipping minus that with learned clipping."""
    return smallest_gain(ctx, ROUNDED, CLIPPED, _ablation(ctx))


def compensation_beats_clipping(ctx: ClaimContext) -> ClaimResult:
    """Loss of learned clipping minus that of learned clipping with Hessian compensation."""
    return smallest_gain(ctx, CLIPPED, WHOLE, _ablation(ctx))


def channels_beat_groups(ctx: ClaimContext) -> ClaimResult:
    """Loss of round to nearest in groups of 64 minus that of the per-channel recipe."""
    return smallest_gain(ctx, GROUPS, WHOLE, _ablation(ctx))


def sixteenfold_is_exact(ctx: ClaimContext) -> ClaimResult:
    """How many outputs of SmolLM2's layers differ from their exact integer sums, scaled in the same order."""
    model, tokenizer = ctx.model(EMBEDDED, dtype="float32")
    calibration = rows(ctx, tokenizer, TRAINING, 1)
    ctx.component("quantizer.odyssey", clipping="none", compensate=False).quantize(model, calibration)
    counts = {"outputs": 0, "different": 0}

    def compare(layer: SixteenfoldLinear, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        q_MK, input_scale = layer.quantize_input(args[0].reshape(-1, layer.in_features))
        sums_MN = q_MK.double() @ layer.integers().double().T
        expected = sums_MN.float() * layer.scale[:, 0] * input_scale
        for found in (layer.from_stored(args[0].reshape(-1, layer.in_features)), output.reshape(expected.shape)):
            counts["different"] += int((expected != found).sum())
        counts["outputs"] += output.numel()

    handles = [layer.register_forward_hook(compare) for layer in quantized(model).values()]
    with torch.no_grad():
        for row in rows(ctx, tokenizer, TEXT, 2):
            model(row[None].to(model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return ClaimResult(ours=counts["different"], seeds=ctx.seeds[:1], details=counts)


def _arm(ctx: ClaimContext, clipping: str, compensate: bool) -> dict[str, Any]:
    learning = LEARNING[ctx.scale] if clipping == "learned" else {}
    return {"use": "quantizer.odyssey", "clipping": clipping, "compensate": compensate, **learning}


def _ablation(ctx: ClaimContext) -> dict[str, Any]:
    found: dict[str, Any] = {
        "float": None,
        ROUNDED: _arm(ctx, "none", False),
        CLIPPED: _arm(ctx, "learned", False),
        WHOLE: _arm(ctx, "learned", True),
        GROUPS: {"use": "quantizer.rtn", "scheme": "w4a8", "group_size": 64},
    }
    if ctx.scale == "gpu":
        found |= {
            "+ searched clipping": _arm(ctx, "search", False),
            "+ searched clipping + compensation": _arm(ctx, "search", True),
            "+ compensation, no clipping": _arm(ctx, "none", True),
        }
    return found
