"""The four-way table: static everywhere, the bands without and with equalization, and per token everywhere.

SmolLM2's weights come from a 4-bit file, so that absolute int4 perplexities are not those of the original model; what
is compared here are treatments of its activations, all on the same weights and the same tokens. A small model trained
here has no loud inputs: its table says what the treatments cost where none is needed, and enters no ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.core.statistics import mean_interval
from stackloom.plugins.quantizer.subjects import CALIBRATION, LENGTH, SMOLLM2, losses, subjects, table

EVERYTHING = 1e30
FPTQ: dict[str, Any] = {"use": "quantizer.fptq"}
FOUR = {
    "float": None,
    "per token everywhere": {**FPTQ, "static_up_to": 0.0, "dynamic_from": 0.0},
    "FPTQ": FPTQ,
    "without equalization": {**FPTQ, "equalize": False},
    "static everywhere": {**FPTQ, "static_up_to": EVERYTHING, "dynamic_from": EVERYTHING},
}
COLLAPSE, NEAR, SAME = 2.0, 1.03, 1.02


def static_collapses(ctx: ClaimContext) -> ClaimResult:
    """Perplexity of a static grid everywhere over that of FPTQ."""
    return _ratio(ctx, "static everywhere", "FPTQ", COLLAPSE, FOUR)


def equalization_recovers(ctx: ClaimContext) -> ClaimResult:
    """Perplexity of the same bands without equalization over that of FPTQ."""
    return _ratio(ctx, "without equalization", "FPTQ", 1.0, FOUR)


def close_to_dynamic(ctx: ClaimContext) -> ClaimResult:
    """Perplexity of FPTQ over that of a grid per token everywhere."""
    return _ratio(ctx, "FPTQ", "per token everywhere", NEAR, FOUR)


def random_tokens_calibrate(ctx: ClaimContext) -> ClaimResult:
    """Perplexity after calibrating on random tokens over that after calibrating on as much text."""
    drawn = {"calibration": "random-tokens", "random_sequences": CALIBRATION[ctx.scale], "random_length": LENGTH}
    return _ratio(ctx, "on random tokens", "on text", SAME, {"on text": FPTQ, "on random tokens": {**FPTQ, **drawn}})


def _ratio(
    ctx: ClaimContext, above: str, below: str, baseline: float, arms: Mapping[str, Mapping[str, Any] | None]
) -> ClaimResult:
    """Return the ratio of two arms' perplexities on SmolLM2; its interval is that of the losses' differences."""
    found = {
        subject: {name: losses(ctx, checkpoint, arm) for name, arm in arms.items()}
        for subject, checkpoint in subjects(ctx).items()
    }
    one, two = found[SMOLLM2][above], found[SMOLLM2][below]
    difference = mean_interval([first - second for first, second in zip(one, two, strict=True)])
    low, high = map(math.exp, difference["interval"])
    return ClaimResult(
        ours=math.exp(difference["value"]),
        interval=(low, high),
        baseline=baseline,
        seeds=ctx.seeds[:1],
        details={"tables": [table(subject, measured) for subject, measured in found.items()]},
    )
