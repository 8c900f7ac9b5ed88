"""The four-way table: static everywhere, the bands without and with equalization, and per token everywhere.

SmolLM2's weights come from a 4-bit file, so that absolute int4 perplexities are not those of the original model; what
is compared here are treatments of its activations, all on the same weights and the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.core.statistics import mean_interval
from stackloom.plugins.quantizer.subjects import EMBEDDED, SMOLLM2, losses, table

EVERYTHING = 1e30
FPTQ: dict[str, Any] = {"use": "quantizer.fptq"}
WITHOUT = {**FPTQ, "equalize": False}
STATIC = {**FPTQ, "static_up_to": EVERYTHING, "dynamic_from": EVERYTHING}
DYNAMIC = {**FPTQ, "static_up_to": 0.0, "dynamic_from": 0.0}
RANDOM = {**FPTQ, "calibration": "random-tokens"}
FOUR = {
    "float": None,
    "W4A8 per token everywhere": DYNAMIC,
    "W4A8 FPTQ": FPTQ,
    "W4A8 FPTQ without equalization": WITHOUT,
    "W4A8 static everywhere": STATIC,
}
COLLAPSE, NEAR, SAME = 2.0, 1.03, 1.02


def static_collapses(ctx: ClaimContext) -> ClaimResult:
    """Perplexity of a static grid everywhere over that of FPTQ."""
    return _ratio(ctx, STATIC, FPTQ, COLLAPSE, FOUR)


def equalization_recovers(ctx: ClaimContext) -> ClaimResult:
    """Perplexity of the same bands without equalization over that of FPTQ."""
    return _ratio(ctx, WITHOUT, FPTQ, 1.0, FOUR)


def close_to_dynamic(ctx: ClaimContext) -> ClaimResult:
    """Perplexity of FPTQ over that of a grid per token everywhere."""
    return _ratio(ctx, FPTQ, DYNAMIC, NEAR, FOUR)


def random_tokens_calibrate(ctx: ClaimContext) -> ClaimResult:
    """Perplexity after calibrating on random tokens over that after calibrating on text."""
    return _ratio(ctx, RANDOM, FPTQ, SAME, {"calibrated on text": FPTQ, "calibrated on random tokens": RANDOM})


def _ratio(
    ctx: ClaimContext,
    above: Mapping[str, Any],
    below: Mapping[str, Any],
    baseline: float,
    arms: Mapping[str, Mapping[str, Any] | None],
) -> ClaimResult:
    """Return the ratio of two perplexities on SmolLM2; its interval is that of the losses' differences, per token."""
    one, two = losses(ctx, EMBEDDED, above), losses(ctx, EMBEDDED, below)
    found = mean_interval([first - second for first, second in zip(one, two, strict=True)])
    low, high = map(math.exp, found["interval"])
    return ClaimResult(
        ours=math.exp(found["value"]),
        interval=(low, high),
        baseline=baseline,
        seeds=ctx.seeds[:1],
        details={"tables": [table(SMOLLM2, {name: losses(ctx, EMBEDDED, arm) for name, arm in arms.items()})]},
    )
