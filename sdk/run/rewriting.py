"""Applies transforms and holds them to their invariant: the model's outputs on real tokens, before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stackloom.core.errors import FitError
from stackloom.core.plan import PlannedComponent
from stackloom.core.slots.transform import Invariant, Rewrite
from stackloom.run.batches import Batches, flatten
from stackloom.run.context import StageContext, build, configure
from stackloom.run.optimizers import each
from stackloom.run.team import Solo


@dataclass(frozen=True)
class Applied:
    """One transform, applied and within its invariant.

    Attributes:
        invariant: what it had to keep.
        change: of the logits, as a share of the largest of them.
        rewrites: what it did where.
    """

    plugin: str
    invariant: Invariant
    change: float
    rewrites: list[Rewrite]

    @property
    def places(self) -> int:
        """How many places were rewritten."""
        return sum(not rewrite.skipped for rewrite in self.rewrites)

    def line(self) -> str:
        """Say it in one line."""
        skipped = {rewrite.skipped: 0 for rewrite in self.rewrites if rewrite.skipped}
        for rewrite in self.rewrites:
            if rewrite.skipped:
                skipped[rewrite.skipped] += 1
        left = "".join(f"; {count} left as they are: {reason}" for reason, count in skipped.items())
        return (
            f"{self.plugin}: {self.places} places rewritten, logits changed by {self.change:.2g} "
            f"(bound {self.invariant.bound:.2g}){left}"
        )


def apply(
    ctx: StageContext,
    part: PlannedComponent,
    model: Any,
    outputs: Callable[[], Sequence[Tensor]],
    optimizer: Any = None,
) -> Applied:
    """Apply a transform to a model in eval mode.

    Args:
        ctx: of the stage.
        part: the transform.
        model: rewritten in place.
        outputs: computes logits of the same real tokens each time, without gradients.
        optimizer: whose memory of the weights follows them.

    Raises:
        FitError: the transform cannot work on this model, or the logits changed by more than it promised.
    """
    transform = build(ctx.catalogue, part)
    invariant = configure(ctx.catalogue, part.plugin, part.options).invariant(  # type: ignore[attr-defined]
        ctx.plan.resources.dtype, ctx.plan.shape.layers
    )
    before = list(outputs())
    rewrites = transform.apply(model, () if optimizer is None else each(optimizer))
    change = relative_change(before, outputs())
    if not change <= invariant.bound:
        raise FitError(
            f"{part.plugin} promised to keep {invariant.statement}, and changed the logits by {change:.3g} of the "
            f"largest, above its bound of {invariant.bound:.3g}",
            where=part.path,
            fix="leave it out, or change its options; the weights that it made are thrown away",
        )
    return Applied(part.plugin, invariant, change, rewrites)


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest change of an entry over the largest entry; infinite where an entry is no number."""
    moved = largest = 0.0
    for one, two in zip(before, after, strict=True):
        if not (torch.isfinite(one).all() and torch.isfinite(two).all()):
            return math.inf
        if one.numel():
            moved = max(moved, float((two - one).abs().max()))
            largest = max(largest, float(one.abs().max()))
    return moved / largest if largest else (math.inf if moved else 0.0)


class Rewriting:
    """The transforms of a train stage.

    Args:
        ctx: of the stage.
        model, optimizer: rewritten in place.
        batches: whose next micro-batch the invariant is checked on.
        team: the workers, each of which checks its own.
    """

    def __init__(self, ctx: StageContext, model: Any, optimizer: Any, batches: Batches, team: Solo) -> None:
        self.ctx, self.model, self.optimizer, self.batches, self.team = ctx, model, optimizer, batches, team
        self.parts = list(ctx.planned_many("transform").values())
        self.due = [build(ctx.catalogue, part).due for part in self.parts]

    def at(self, step: int) -> dict[str, float]:
        """Apply what is due before step `step`, and return figures for its metrics.

        Raises:
            FitError: as `apply`.
        """
        parts = [part for part, due in zip(self.parts, self.due, strict=True) if due(step)]
        if not parts:
            return {}
        training = self.model.training
        self.model.eval()
        found = []
        for part in parts:
            found.append(apply(self.ctx, part, self.model, lambda: [self._logits(step)], self.optimizer))
            self.ctx.say(f"step {step}: {found[-1].line()}")
        self.model.train(training)
        return {"rewritten": sum(one.places for one in found), "output_change": max(one.change for one in found)}

    @torch.no_grad()
    def _logits(self, step: int) -> Tensor:
        rows = self.batches.rows(step, self.team.rank, self.team.size)
        row = flatten(rows[: self.ctx.options.micro_batch_size])  # type: ignore[attr-defined]
        device = self.model.device
        found: Tensor = self.model(
            input_ids=row.input_ids[None].to(device),
            position_ids=row.positions[None].to(device),
            use_cache=False,
            logits_to_keep=row.predicts.to(device),
        ).logits
        self.team.settle(self.model)
        return found
