"""The optimizer of a train stage: one plugin for every parameter, or several that share them by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import nn

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.stages import first_match, unassigned
from stackloom.run.context import StageContext, build


class Optimizers:
    """Several optimizers that step together; each has its own parameters.

    Args:
        members: by the pattern of parameter names that gave each its parameters.
    """

    def __init__(self, members: dict[str, Any]) -> None:
        self.members = members

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, in order; a schedule sets their "lr"."""
        return list(chain.from_iterable(member.param_groups for member in self.members.values()))

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for member in self.members.values():
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for member in self.members.values():
            member.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {pattern: member.state_dict() for pattern, member in self.members.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ArtifactError: it was saved for other patterns.
        """
        if list(state_dict) != list(self.members):
            raise ArtifactError("the optimizer state belongs to other patterns", where="train.optimizer")
        for pattern, member in self.members.items():
            member.load_state_dict(state_dict[pattern])

    def routes(self) -> list[tuple[str, str]]:
        """Return (parameter name, rule that updates it), one optimizer after the other."""
        return list(chain.from_iterable(member.routes() for member in self.members.values()))


def build_optimizer(ctx: StageContext, trainable: dict[str, nn.Parameter]) -> Any:
    """Build what a train stage steps with.

    Args:
        ctx: of the stage.
        trainable: parameters by name; the first pattern that names one takes it.

    Raises:
        ConfigError: a parameter that no pattern takes, or a pattern that nothing is left for.
    """
    planned = ctx.planned_many("optimizer")
    if "" in planned:
        return build(ctx.catalogue, planned[""], list(trainable.items()))
    if wrong := unassigned(trainable, planned):
        raise ConfigError(wrong, where=f"stages[{ctx.stage.index}].{ctx.stage.kind}.optimizer")
    shares: dict[str, list[tuple[str, nn.Parameter]]] = {pattern: [] for pattern in planned}
    for name, parameter in trainable.items():
        shares[str(first_match(name, planned))].append((name, parameter))
    return Optimizers({pattern: build(ctx.catalogue, part, shares[pattern]) for pattern, part in planned.items()})


def each(optimizer: Any) -> Sequence[Any]:
    """Return the plain optimizers that an optimizer consists of."""
    return tuple(optimizer.members.values()) if isinstance(optimizer, Optimizers) else (optimizer,)
