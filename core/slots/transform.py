"""Slot `transform`: rewrites weights under an invariant that is stated and checked."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
ROUNDINGS = 8  # linear layers and norms that a decoder layer puts one after the other


@dataclass(frozen=True)
class Invariant:
    """What a transform keeps.

    Attributes:
        statement: for people: "the logits, bit for bit".
        bound: largest change of a logit, as a share of the largest logit; 0 for bit-equal ones.
    """

    statement: str
    bound: float


@dataclass(frozen=True)
class Rewrite:
    """What happened in one place of the model.

    Attributes:
        name: dotted module path and what of it ("model.layers.0.self_attn q/k").
        what: for people: "q x 0.408, k x 2.45"; empty where it was skipped.
        before, after: the figure that the transform brings down (an imbalance, an error), in its own unit.
        skipped: why nothing was done here; empty where something was.
    """

    name: str
    what: str = ""
    before: float | None = None
    after: float | None = None
    skipped: str = ""


class TransformConfig(ComponentConfig):
    """Base of a transform's options."""

    @abstractmethod
    def invariant(self, dtype: str, layers: int) -> Invariant:
        """Say what is kept, for a model of so many layers whose weights have this torch dtype name."""


class Transform(Protocol):
    """The component: constructed as `Component(config)`; works on a `transformers.PreTrainedModel` in place.

    In a `transform` stage it is applied once. In training it is asked before every step; `due(0)` is before the first.
    It keeps nothing between calls, so that a resumed run does what an undisturbed one does. Weights change in place, so
    that torch's version counters rise; keys and values that a cache holds from before are void.
    """

    def due(self, step: int) -> bool:
        """Whether training applies it before optimizer step `step`, counted from 0."""
        ...

    def apply(self, model: Any, optimizers: Sequence[Any] = ()) -> list[Rewrite]:
        """Rewrite weights, and what the `torch.optim.Optimizer`s remember of them; say what was done where.

        The model may be sharded (DTensor parameters); all workers call it.

        Raises:
            FitError: the model, or a layer of it, cannot be rewritten this way; nothing was changed then.
        """
        ...


def rounding_bound(dtype: str, layers: int) -> float:
    """Return the relative change of logits that rounding each weight once to `dtype` accounts for.

    Errors of independent roundings add up as a random walk: four deviations of `ROUNDINGS` x layers steps of one eps.

    Example:
        >>> round(rounding_bound("float32", 30), 8)
        7.39e-06
    """
    return 4 * math.sqrt(ROUNDINGS * layers) * EPS[dtype]


SLOT = Slot(
    name="transform",
    version=1,
    sits_in=("train", "transform"),
    protocol=Transform,
    config=TransformConfig,
    summary="rewrites weights under an invariant that is stated and checked",
    features={
        "exact": "an option keeps the logits bit for bit",
        "state": "rewrites what optimizers remember, too",
        "adapters": "rewrites an adapter's matrices, too",
    },
)
