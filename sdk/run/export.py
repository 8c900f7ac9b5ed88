"""The export stage: a folder that transformers loads without stackloom."""

from __future__ import annotations

import torch

from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core.stages import Export
from stackloom.run.context import StageContext, configure


def run(ctx: StageContext) -> Artifact:
    """Write config, weights (dequantized, adapters merged) and tokenizer."""
    options = ctx.options
    assert isinstance(options, Export)
    model, tokenizer = ctx.load_model()
    for artifact in reversed(ctx.lineage):
        if artifact.card.kind == "quantized":
            details = artifact.card.details
            configure(ctx.catalogue, details["plugin"], details["options"]).build().dequantize(model)
    model.to(getattr(torch, options.dtype))
    with writing(
        ctx.target,
        Card(kind="model", key=ctx.key, made_by="export", parent=ctx.parent, details={"format": options.format}),
    ) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return read(ctx.target)
