"""The export stage: a folder that transformers loads without stackloom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core.stages import Export
from stackloom.plugins.quantizer.compressed import Compressed, compressed
from stackloom.run.context import StageContext, configure


def run(ctx: StageContext) -> Artifact:
    """Write config, weights (adapters merged, quantized ones as the format has them) and tokenizer.

    Raises:
        FitError: the format cannot hold this model.
    """
    options = ctx.options
    assert isinstance(options, Export)
    model, tokenizer = ctx.load_model()
    details: dict[str, Any] = {"format": options.format}
    found: Compressed | None = None
    if options.format == "compressed-tensors":
        model.to(getattr(torch, options.dtype))
        found = compressed(model, weights_only=options.weights_only)
        details["notes"] = list(found.notes)
        for note in found.notes:
            ctx.say(note)
    else:
        _dequantize(ctx, model)
        model.to(getattr(torch, options.dtype))
    with writing(
        ctx.target, Card(kind="model", key=ctx.key, made_by="export", parent=ctx.parent, details=details)
    ) as folder:
        if found is None:
            model.save_pretrained(folder)
        else:
            _save(model, found, folder)
        tokenizer.save_pretrained(folder)
    return read(ctx.target)


def _dequantize(ctx: StageContext, model: Any) -> None:
    for artifact in reversed(ctx.lineage):
        if artifact.card.kind == "quantized":
            details = artifact.card.details
            configure(ctx.catalogue, details["plugin"], details["options"]).build().dequantize(model)


def _save(model: Any, found: Compressed, folder: Path) -> None:
    """Write a model in the compressed-tensors format: save_pretrained knows no quantized layers of ours."""
    state = {name: tensor.contiguous() for name, tensor in found.state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.quantization_config = found.config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
