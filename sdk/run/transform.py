"""The transform stage: the model in, the same function with other weights out, checked on real tokens."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core.stages import Transform
from stackloom.run import rewriting
from stackloom.run.context import StageContext, save_state, write_json
from stackloom.run.quantize import sequences


def run(ctx: StageContext) -> Artifact:
    """Apply the stage's transforms one after the other and write the model with a report of what changed.

    Raises:
        ConfigError: the data has not one sequence to check on.
        FitError: a transform cannot work on this model, or breaks its invariant; nothing is written then.
    """
    options = ctx.options
    assert isinstance(options, Transform)
    model, tokenizer = ctx.load_model()
    model.eval()
    tokens = sequences(ctx.component("data", tokenizer), options.sequences, options.sequence_length)

    @torch.no_grad()
    def outputs() -> list[Tensor]:
        return [model(each[None].to(model.device), use_cache=False).logits.cpu() for each in tokens]

    parts = list(ctx.planned_many("transform").values())
    ctx.progress(0, len(parts), {})
    done = []
    for index, part in enumerate(parts):
        done.append(rewriting.apply(ctx, part, model, outputs))
        ctx.say(done[-1].line())
        values = {"rewritten": float(done[-1].places), "output_change": done[-1].change}
        ctx.metrics(index + 1, values)
        ctx.progress(index + 1, len(parts), values)
    details = {
        "transforms": [{"plugin": part.plugin, "options": part.options} for part in parts],
        "tokens": len(tokens) * options.sequence_length,
    }
    card = Card(kind="model", key=ctx.key, made_by="transform", parent=ctx.parent, details=details)
    with writing(ctx.target, card) as folder:
        save_state(model, folder)
        model.config.save_pretrained(folder)
        write_json(folder / "rewrites.json", [asdict(one) for one in done])
    return read(ctx.target)
