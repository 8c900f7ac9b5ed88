"""What quantizers are judged on: SmolLM2-135M and a Llama trained here, losses token by token on held-out text.

SmolLM2's weights come from a 4-bit file and lie on a grid already, so the second subject starts from random weights and
is trained and kept in bfloat16. A CPU that takes ten times as long over bfloat16 trains it in float32 and rounds it at
the end; the subject's name says which. All arms of a claim see the same tokens, so that differences are paired. What
is not quantized is computed in float32 on every device, so that rounding of activations is the quantizer's alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.core.statistics import mean_interval

SMOLLM2 = "SmolLM2-135M"
EMBEDDED = "smollm2-135m-instruct"
SHAPE = {"layers": 6, "hidden": 256, "heads": 4, "kv_heads": 2, "intermediate": 768}
TRAINING = {"use": "data.pydoc", "split": "train", "held_out": 0.2}
TEXT = {"use": "data.pydoc", "split": "held-out", "held_out": 0.2}
LENGTH = 512
SEQUENCES = {"cpu": 16, "cpu-full": 64, "gpu": 64}
STEPS = {"cpu": 60, "cpu-full": 150, "gpu": 150}  # 2,048 tokens each: a second of one core with bfloat16, three without
CALIBRATION = {"cpu": 8, "cpu-full": 16, "gpu": 32}
ARITHMETIC = {"dtype": "float32"}


def subjects(ctx: ClaimContext) -> dict[str, str]:
    """Return a checkpoint by subject; the second one is trained the first time it is asked for, then found."""
    train = {
        "data": TRAINING,
        "optimizer": {"use": "optimizer.adamw", "lr": 2e-3},
        "steps": STEPS[ctx.scale],
        "batch_size": 8,
        "micro_batch_size": 4,
        "sequence_length": 256,
        "warmup_steps": 10,
    }
    run = ctx.run(
        {
            "name": "second-subject",
            "model": {"use": "model.hf", "checkpoint": EMBEDDED, "fresh": SHAPE},
            "resources": {"dtype": "auto"},
            "stages": [{"train": train}, {"export": {"dtype": "bfloat16"}}],
        }
    )
    scratch = f"17M trained in {run.plan.resources.dtype}"
    return {SMOLLM2: EMBEDDED, scratch: str(run.stages[-1].folder)}


def rows(ctx: ClaimContext, tokenizer: Any, text: Mapping[str, Any], count: int) -> Sequence[Any]:
    """Return `count` token sequences of a text given by reference."""
    options = {name: value for name, value in text.items() if name != "use"}
    return ctx.data(text["use"], tokenizer, sequences=count, sequence_length=LENGTH, **options)


def losses(ctx: ClaimContext, checkpoint: str, quantizer: Mapping[str, Any] | None = None) -> list[float]:
    """Return each held-out token's negative log-likelihood in nats, after quantizing; None leaves the model alone."""
    quantize = {
        "quantizer": dict(quantizer or {}),
        "data": TRAINING,
        "calibration_sequences": CALIBRATION[ctx.scale],
        "sequence_length": LENGTH,
    }
    evaluate = {"data": TEXT, "sequences": SEQUENCES[ctx.scale], "sequence_length": LENGTH}
    stages: list[dict[str, Any]] = [{"quantize": quantize}] if quantizer else []
    run = ctx.run(
        {
            "model": {"use": "model.hf", "checkpoint": checkpoint},
            "resources": ARITHMETIC,
            "stages": [*stages, {"evaluate": evaluate}],
        }
    )
    return [loss for row in run.metrics(len(stages))["perplexity"]["token_nll"] for loss in row]


def smallest_gain(
    ctx: ClaimContext, before: str, after: str, arms: Mapping[str, Mapping[str, Any] | None]
) -> ClaimResult:
    """Return the loss before minus the loss after, in nats per token, of the subject that gains least.

    Args:
        ctx: where arms run.
        before, after: names of arms.
        arms: quantizers by reference, by name; the first is what the tables compare with.
    """
    gains, tables = [], []
    for subject, checkpoint in subjects(ctx).items():
        found = {name: losses(ctx, checkpoint, arm) for name, arm in arms.items()}
        gains.append(mean_interval([a - b for a, b in zip(found[before], found[after], strict=True)]))
        tables.append(table(subject, found))
    least = min(gains, key=lambda gain: gain["value"])
    return ClaimResult(
        ours=least["value"],
        interval=least["interval"],
        baseline=0.0,
        seeds=ctx.seeds[:1],
        details={"tables": tables},
    )


def table(subject: str, arms: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return a table of perplexities; the first arm is what differences are paired with, token by token."""
    base = next(iter(arms.values()))
    rows = []
    for name, found in arms.items():
        difference = mean_interval([a - b for a, b in zip(found, base, strict=True)])
        low, high = difference["interval"]
        rows.append([name, math.exp(math.fsum(found) / len(found)), difference["value"], low, high])
    return {
        "title": f"{subject}, {len(base)} paired tokens",
        "columns": ["arm", "perplexity", f"nats per token above {next(iter(arms))}", "from", "to"],
        "rows": rows,
    }
