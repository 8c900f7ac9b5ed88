"""Slot `optimizer`: a `torch.optim.Optimizer` that routes parameters by name and shape."""

from __future__ import annotations

from typing import Any, Protocol

from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot


class Optimizer(Protocol):
    """The component: a `torch.optim.Optimizer`, constructed as `Component(config, named_parameters)`.

    `named_parameters` yields (name, Parameter) as `Module.named_parameters` does. Every parameter group has an "lr"
    that a schedule may set before each step; `state_dict` and `load_state_dict` resume bit-exactly.
    """

    param_groups: list[dict[str, Any]]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...

    def routes(self) -> list[tuple[str, str]]:
        """Return (parameter name, rule that updates it) for every parameter, for the plan and the report."""
        ...


SLOT = Slot(
    name="optimizer",
    version=1,
    sits_in=("train",),
    protocol=Optimizer,
    config=ComponentConfig,
    summary="updates parameters from gradients",
    features={
        "foreach": "updates tensors in batches",
        "matrix": "treats 2-D weights as matrices",
        "capturable": "runs inside a CUDA graph",
    },
)
