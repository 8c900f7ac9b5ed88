"""How beta falls from one to zero over the optimizer's steps. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Shape: TypeAlias = Literal["linear", "cosine", "warmup_cosine_patient", "exponential"]


@dataclass(frozen=True)
class Schedule:
    """Beta as a pure function of the optimizer step, so that a resumed run reads what an undisturbed one does.

    Every shape is exactly 0.0 at the last step at the latest: what is trained last is the LoRA that is kept.

    Attributes:
        shape: "linear" and "cosine" hold 1, then fall; "warmup_cosine_patient" rises first and waits at the end
            (OverRep, arXiv 2609.06974); "exponential" decays and is cut off.
        rho: share of all steps over which "linear" and "cosine" fall.
        hold: share of all steps before that at beta 1.
        warmup, patience: shares of all steps that "warmup_cosine_patient" rises and waits.
        decay: rate per step of "exponential".
        cutoff: step from which "exponential" is 0.
    """

    shape: Shape
    rho: float
    hold: float
    warmup: float
    patience: float
    decay: float
    cutoff: int

    def beta(self, step: int, steps: int) -> float:
        """Return beta of optimizer step `step` of `steps`, both counted from 0 and without micro-batches.

        Example:
            >>> Schedule("linear", 0.4, 0.0, 0.0, 0.0, 0.0, 0).beta(1, 10)
            0.75
        """
        first, end = self.span(steps)
        if step >= end:
            return 0.0
        if self.shape == "exponential":
            return math.exp(-self.decay * step)
        if step < first:
            return step / first if self.shape == "warmup_cosine_patient" else 1.0
        progress = (step - first) / (end - first)
        return 1 - progress if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    def span(self, steps: int) -> tuple[int, int]:
        """Return (first step at which beta falls, first step at which it is 0), both at most the last step."""
        last = steps - 1
        if self.shape == "exponential":
            return 0, min(self.cutoff, last)
        if self.shape == "warmup_cosine_patient":
            end = min(round((1 - self.patience) * steps), last)
            return min(round(self.warmup * steps), end), end
        first = min(round(self.hold * steps), last)
        return first, min(first + round(self.rho * steps), last)
