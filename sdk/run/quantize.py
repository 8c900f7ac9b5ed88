"""The quantize stage: the model in, the same model with low-precision layers out, with a report per layer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core.errors import ConfigError
from stackloom.core.stages import Quantize
from stackloom.run.context import StageContext, save_state, write_json


def run(ctx: StageContext) -> Artifact:
    """Quantize and write the quantized state with its recipe.

    Raises:
        ConfigError: the calibration data is empty.
        FitError: a layer cannot be quantized this way.
    """
    options = ctx.options
    assert isinstance(options, Quantize)
    model, tokenizer = ctx.load_model()
    quantizer = ctx.component("quantizer")
    data = ctx.component("data", tokenizer)
    calibration = [] if data is None else sequences(data, options.calibration_sequences, options.sequence_length)
    steps = 1

    def progress(done: int, total: int) -> None:
        nonlocal steps
        steps = total
        ctx.progress(done, total, {})

    progress(0, 1)
    with torch.no_grad():
        layers = quantizer.quantize(model, calibration, progress)
    before, after = sum(layer.bytes_before for layer in layers), sum(layer.bytes_after for layer in layers)
    values = {
        "layers": len(layers),
        "bytes_before": before,
        "bytes_after": after,
        "lowest_snr_db": min(layer.snr_db for layer in layers),
    }
    if errors := [layer.output_error for layer in layers if layer.output_error is not None]:
        values["highest_output_error"] = max(errors)
    ctx.metrics(1, values)
    ctx.progress(steps, steps, values)
    part = ctx.planned("quantizer")
    assert part is not None
    details: dict[str, Any] = {
        "plugin": part.plugin,
        "options": part.options,
        "bytes_before": before,
        "bytes_after": after,
    }
    with writing(
        ctx.target, Card(kind="quantized", key=ctx.key, made_by="quantize", parent=ctx.parent, details=details)
    ) as folder:
        save_state(model, folder)
        write_json(folder / "layers.json", [asdict(layer) for layer in layers])
    return read(ctx.target)


def sequences(data: Any, count: int, length: int) -> list[torch.Tensor]:
    """Return `count` token sequences of exactly `length`, made of the data's examples one after the other.

    Raises:
        ConfigError: the data is shorter than one sequence.
    """
    found: list[torch.Tensor] = []
    tokens: list[int] = []
    for index in range(len(data)):
        tokens += data[index].input_ids
        while len(tokens) >= length and len(found) < count:
            found.append(torch.tensor(tokens[:length]))
            tokens = tokens[length:]
        if len(found) == count:
            break
    if not found:
        raise ConfigError(
            f"the data has {len(tokens)} tokens, one sequence takes {length}",
            where="data",
            fix="lower sequence_length or give more data",
        )
    return found
