"""What optimizers remember of rewritten weights: buffers follow, or are forgotten; and the control's learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.plugins.transform.wisca.balance import multiply
from stackloom.plugins.transform.wisca.pairs import ID, Member


def unknown_buffers(members: Iterable[Member], optimizers: Sequence[Any], degrees: Mapping[str, int]) -> list[str]:
    """Return names of buffers that have the shape of their parameter and no degree."""
    return sorted(
        {
            name
            for member in members
            for state in _states(member.parameter, optimizers)
            for name, value in state.items()
            if _follows(value, member.parameter) and name not in degrees
        }
    )


def rescale(member: Member, factor_N: Tensor, optimizers: Sequence[Any], degrees: Mapping[str, int]) -> None:
    """Make buffers follow W' = f W, whose gradient is g / f: a buffer of degree d in the gradient becomes b / f^d."""
    for state in _states(member.parameter, optimizers):
        for name, value in state.items():
            if _follows(value, member.parameter):
                multiply(value, member, factor_N.pow(-degrees[name]))


def refuse_unknown(members: Iterable[Member], optimizers: Sequence[Any], degrees: Mapping[str, int]) -> None:
    """Refuse to guess how a buffer follows.

    Raises:
        FitError: names the buffers.
    """
    if unknown := unknown_buffers(members, optimizers, degrees):
        raise FitError(
            f"how the optimizer's {', '.join(unknown)} follows a gradient's scale is not known",
            where=f"{ID}.state",
            fix=f"add its degree to state_degrees, for instance {{{unknown[0]}: 1}}; or take state: reset or keep",
        )


@torch.no_grad()
def reset(parameter: nn.Parameter, optimizers: Sequence[Any]) -> None:
    """Zero everything that is remembered of a parameter, its step counter included."""
    for state in _states(parameter, optimizers):
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def match_rates(member: Member, scale: float, optimizers: Sequence[Any], power: int) -> None:
    """Give a parameter the learning rate that multiplying it by `scale` amounts to; lr times decay stays.

    W' = s W with a step of lr u in W' is a step of lr u / s in W, where u does not depend on the gradient's scale;
    where it is the gradient itself, g' = g / s makes it lr g / s^2.

    Raises:
        FitError: no optimizer has the parameter.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            places = [place for place, each in enumerate(group["params"]) if each is member.parameter]
            if not places:
                continue
            mine = group
            if len(group["params"]) > 1:
                mine = {key: value for key, value in group.items() if key not in ("params", "param_names")}
                parameter = group["params"].pop(places[0])
                named = (group["param_names"].pop(places[0]), parameter) if "param_names" in group else parameter
                optimizer.add_param_group(mine | {"params": [named]})
                mine = optimizer.param_groups[-1]
            mine["lr"] /= scale**power
            mine["weight_decay"] = mine.get("weight_decay", 0.0) * scale**power
            return
    raise FitError(f"no optimizer updates {member.name}", where=f"{ID}.control", fix="set control: off")


def _states(parameter: nn.Parameter, optimizers: Sequence[Any]) -> list[dict[str, Any]]:
    return [optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state]


def _follows(value: Any, parameter: nn.Parameter) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
