"""The train stage: causal language-model loss on masked tokens, packed rows, bit-exact resume."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name

from stackloom.artifacts import Artifact, Card, read
from stackloom.core.stages import Train
from stackloom.run import checkpoint
from stackloom.run.batches import Batches, Row, flatten, share_beginnings
from stackloom.run.context import StageContext, finite, save_state
from stackloom.run.memory import release_heap
from stackloom.run.optimizers import build_optimizer
from stackloom.run.packed_attention import packed_attention
from stackloom.run.rewriting import Rewriting
from stackloom.run.team import Solo, same_start


def run(ctx: StageContext) -> Artifact:
    """Train with one worker, this process; see `work`."""
    work(ctx, Solo())
    return read(ctx.target)


def work(ctx: StageContext, team: Solo) -> None:
    """Train as one worker of a team, from the newest checkpoint if there is one, and write the adapter or the model.

    Raises:
        FitError: the loss is not finite.
        ConfigError: the data has nothing to train on, or the workers began with different weights or data.
    """
    options = ctx.options
    assert isinstance(options, Train)
    model, tokenizer = ctx.load_model()
    adapter = ctx.component("adapter")
    if adapter is not None:
        adapter.inject(model, seed=ctx.stage.seed)
    else:
        model.requires_grad_(True)
    if ctx.plan.resources.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    data = ctx.component("data", tokenizer)
    batches = Batches(data, sequence_length=options.sequence_length, batch_size=options.batch_size, seed=ctx.stage.seed)
    same_start(team, model, batches.examples)
    team.lay_out(model)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = build_optimizer(ctx, trainable)
    rewriting = Rewriting(ctx, model, optimizer, batches, team)
    started = rewriting.at(0)  # also when resuming: it may change the optimizer's groups; a checkpoint holds the rest
    peaks = [group["lr"] for group in optimizer.param_groups]

    torch.manual_seed(team.seed(ctx.stage.seed))
    done, spent = _resume(ctx, trainable, optimizer, team)
    begin = time.monotonic() - spent
    model.train()
    with packed_attention(model) as packed:
        for step in range(done, options.steps):
            factor = rate(options, step)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            if adapter is not None:
                adapter.on_step(step, options.steps)
            rewritten = rewriting.at(step) if step else started
            clock = time.monotonic()
            rows = batches.rows(step, team.rank, team.size)
            loss, norm = _step(model, trainable, optimizer, rows, options, team, packed)
            release_heap()
            finite(
                [loss, norm], f"the loss at step {step}" if not math.isfinite(loss) else f"the gradient at step {step}"
            )
            tokens = team.total(sum(len(row.input_ids) for row in rows))
            values = {
                "loss": loss,
                "grad_norm": norm,
                "lr": optimizer.param_groups[0]["lr"],
                "epoch": batches.epoch(step + 1),
                "tokens_per_second": tokens / (time.monotonic() - clock),
                **rewritten,
            }
            ctx.metrics(step + 1, values)
            ctx.progress(step + 1, options.steps, values)
            if (step + 1) % options.checkpoint_every == 0 and step + 1 < options.steps:
                progress = {"seconds": time.monotonic() - begin}
                checkpoint.save(ctx.folder, step + 1, ctx.key, trainable, optimizer.state_dict(), progress, team)
    _finish(ctx, model, adapter, batches, team)


def rate(options: Train, step: int) -> float:
    """Return the learning rate's factor at `step`: linear warm-up, then the schedule down to its final fraction."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return 1.0
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    left = (1 + math.cos(math.pi * progress)) / 2 if options.schedule == "cosine" else 1 - progress
    return options.final_lr_fraction + (1 - options.final_lr_fraction) * left


def _step(
    model: Any, trainable: dict[str, Any], optimizer: Any, rows: list[Row], options: Train, team: Solo, packed: bool
) -> tuple[float, float]:
    """Accumulate gradients over micro-batches, clip, update; returns (mean loss per trained token, gradient norm)."""
    optimizer.zero_grad(set_to_none=True)
    total = team.total(sum(len(row.targets) for row in rows))
    loss = 0.0
    for first in range(0, len(rows), options.micro_batch_size):
        micro_batch = flatten(rows[first : first + options.micro_batch_size])
        part = loss_of(model, share_beginnings(micro_batch) if packed else micro_batch) / total
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    loss = team.total(loss)
    team.reduce(trainable.values())
    norm = team.clip(trainable.values(), options.clip_norm)
    if math.isfinite(loss) and math.isfinite(norm):
        optimizer.step()
    return loss, norm


def loss_of(model: Any, row: Row) -> torch.Tensor:
    """Return the summed loss over a row's trained tokens; logits are made for those alone, the loss is in float32."""
    device = model.device
    logits = model(
        input_ids=row.input_ids[None].to(device),
        position_ids=row.positions[None].to(device),
        use_cache=False,
        logits_to_keep=row.predicts.to(device),
    ).logits
    return F.cross_entropy(logits[0].float(), row.targets.to(device), reduction="sum")


def _resume(ctx: StageContext, trainable: dict[str, Any], optimizer: Any, team: Solo) -> tuple[int, float]:
    found = ""
    if team.rank == 0:
        newest, passed_over = checkpoint.newest(ctx.folder, ctx.key)
        for reason in passed_over:
            ctx.say(f"checkpoint passed over: {reason}")
        found = newest.folder.name if newest else ""
    found = team.agree(found)
    if not found:
        return 0, 0.0
    step, parameters, state, progress = checkpoint.load(ctx.folder / found, team)
    with torch.no_grad():
        for name, parameter in trainable.items():
            team.local(parameter)[0].copy_(parameters[name])
    optimizer.load_state_dict(state)
    ctx.say(f"resuming at step {step}")
    return step, float(progress["seconds"])


def _finish(ctx: StageContext, model: Any, adapter: Any, batches: Batches, team: Solo) -> None:
    model.eval()
    details: dict[str, Any] = {"examples": len(batches.examples), "left_out": batches.left_out[:100]}
    part = ctx.planned("adapter")
    if part is not None:
        details |= {"plugin": part.plugin, "options": part.options}
    card = Card(kind="adapter" if part else "model", key=ctx.key, made_by="train", parent=ctx.parent, details=details)
    team.gather(model)
    with team.writing(ctx.target, card) as folder:
        if team.rank != 0:
            return
        if adapter is not None:
            adapter.save(model, folder, ctx.plan.shape.name)
        else:
            save_state(model, folder)
            model.config.save_pretrained(folder)
