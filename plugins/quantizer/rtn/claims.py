"""What rounding to nearest costs: perplexity against bfloat16, and int4 in groups against whole rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.core.statistics import mean_interval

MODEL = {"use": "model.hf", "checkpoint": "smollm2-135m-instruct"}
TEXT = {"use": "data.pydoc", "split": "held-out"}
SEQUENCES = {"cpu": 24, "cpu-full": 64, "gpu": 64}
LENGTH = 256
W8A8_BAR = 1.03


def w8a8_keeps_perplexity(ctx: ClaimContext) -> ClaimResult:
    """Perplexity of W8A8 over that of bfloat16; the interval is over sequences, paired."""
    plain, w8a8 = _losses(ctx), _losses(ctx, scheme="w8a8")
    found = mean_interval(_differences(plain, w8a8))
    low, high = map(math.exp, found["interval"])
    return ClaimResult(
        ours=math.exp(found["value"]),
        interval=(low, high),
        baseline=W8A8_BAR,
        seeds=ctx.seeds[:1],
        details={"tables": [_table({"bfloat16": plain, "W8A8 per channel": w8a8})]},
    )


def groups_help_int4(ctx: ClaimContext) -> ClaimResult:
    """Loss of W4A16 in groups of 64 minus that of W4A16 per channel; the interval is over sequences, paired."""
    groups, channels = (_losses(ctx, scheme="w4a16", group_size=size) for size in (64, "channel"))
    found = mean_interval(_differences(channels, groups))
    arms = {"bfloat16": _losses(ctx), "W4A16 groups of 64": groups, "W4A16 per channel": channels}
    return ClaimResult(
        ours=found["value"],
        interval=found["interval"],
        baseline=0.0,
        seeds=ctx.seeds[:1],
        details={"tables": [_table(arms)]},
    )


def _losses(ctx: ClaimContext, **options: Any) -> list[float]:
    """Return nats per token of each sequence, after quantizing with these options; without any, of the plain model."""
    quantize = [{"quantize": {"quantizer": {"use": "quantizer.rtn", **options}}}] if options else []
    evaluate = {"evaluate": {"data": TEXT, "sequences": SEQUENCES[ctx.scale], "sequence_length": LENGTH}}
    run = ctx.run({"model": MODEL, "resources": {"dtype": "bfloat16"}, "stages": [*quantize, evaluate]})
    losses: list[float] = run.metrics(len(quantize))["perplexity"]["nll"]
    return losses


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [after - before for before, after in zip(first, second, strict=True)]


def _table(arms: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "title": f"Perplexity, {len(next(iter(arms.values())))} sequences of {LENGTH} tokens",
        "columns": ["weights", "perplexity", "nats per token"],
        "rows": [
            [name, math.exp(math.fsum(losses) / len(losses)), math.fsum(losses) / len(losses)]
            for name, losses in arms.items()
        ],
    }
