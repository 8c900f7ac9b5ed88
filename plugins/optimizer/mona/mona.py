"""MONA: Muon whose gradient is augmented by an average of gradient differences, before the momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stackloom.kernels.muon_update import NEAREST
from stackloom.kernels.muon_update.each import accelerated_momentum_each_, momentum_each_
from stackloom.plugins.optimizer.matrix_optimizer import Matrix, MatrixOptimizer
from stackloom.plugins.optimizer.mona.config import MonaConfig
from stackloom.plugins.optimizer.sharding import local


class Mona(MatrixOptimizer):
    """Muon on G + alpha A, with A the average of gradient differences (arXiv 2605.26842, Algorithm 1, lines 2 to 4).

    A = (1 - beta_a) (G - m) with m the average of past gradients, so one buffer does. A matrix group holds "alpha" and
    "beta_a", which may differ from group to group.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(4, 2)
        >>> Mona(MonaConfig(lr=1e-2), model.named_parameters()).routes()
        [('weight', 'mona, decay 0.1'), ('bias', 'adamw, no decay')]
    """

    plugin = "optimizer.mona"
    rule = "mona"
    config: MonaConfig

    def _matrix_group(self) -> dict[str, Any]:
        return super()._matrix_group() | {"alpha": self.config.acceleration, "beta_a": self.config.beta_a}

    def _start(self, matrix: Matrix) -> dict[str, Tensor]:
        config, parameter = self.config, matrix.parameter
        wide = torch.promote_types(parameter.dtype, torch.float32)
        state = super()._start(matrix) | {"step": torch.zeros((), dtype=torch.int64)}
        if config.buffers == "three":
            buffers = {"acceleration": wide, "previous_gradient": parameter.dtype}
        else:
            buffers = {"gradient_average": torch.bfloat16 if config.buffers == "lite" else wide}
        for name, dtype in buffers.items():
            state[name] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
        if config.init_prev == "first":
            first = state["previous_gradient" if config.buffers == "three" else "gradient_average"]
            local(first).copy_(local(parameter.grad))
        return state

    def _direct(
        self,
        matrices: Sequence[Matrix],
        group: dict[str, Any],
        states: Sequence[dict[str, Tensor]],
        Gs: Sequence[Tensor],
        Us: Sequence[Tensor],
    ) -> None:
        alike: dict[int, list[int]] = {}  # a matrix that was without a gradient for a while is some steps behind
        for place, state in enumerate(states):
            state["step"] += 1
            alike.setdefault(int(state["step"]), []).append(place)
        for step, places in alike.items():
            matrices_, states_, Gs_, Us_ = ([each[place] for place in places] for each in (matrices, states, Gs, Us))
            self._direct_at(step, matrices_, group, states_, Gs_, Us_)

    def _direct_at(
        self,
        step: int,
        matrices: Sequence[Matrix],
        group: dict[str, Any],
        states: Sequence[dict[str, Tensor]],
        Gs: Sequence[Tensor],
        Us: Sequence[Tensor],
    ) -> None:
        alpha = group["alpha"] * min(1.0, step / max(1, self.config.alpha_warmup_steps))
        beta, momentum, nesterov = group["beta_a"], group["momentum"], group["nesterov"]
        Ms, implementation = [state["momentum_buffer"] for state in states], self._implementation(Gs[0])
        if self.config.buffers == "three":
            augmented = [
                _augmented(G, state["previous_gradient"], state["acceleration"], alpha, beta)
                for G, state in zip(Gs, states, strict=True)
            ]
            momentum_each_(augmented, Ms, momentum, nesterov, Us, implementation=implementation)
            return
        seeds, averages = [NEAREST] * len(Gs), [state["gradient_average"] for state in states]
        if self.config.stochastic_rounding:
            seeds = [(self.config.seed + 1_000_003 * matrix.index + 7919 * step) % 2**31 for matrix in matrices]
        accelerated_momentum_each_(
            *(Gs, Ms, averages, momentum, nesterov, alpha * (1 - beta), beta, seeds),
            *([matrix.offset for matrix in matrices], Us),
            implementation=implementation,
        )


def _augmented(G: Tensor, previous: Tensor, acceleration: Tensor, alpha: float, beta: float) -> Tensor:
    """G + alpha A with D = G - G_prev and A <- beta A + (1 - beta) D, as printed; keeps the raw G, and a copy of it."""
    wide = G.to(acceleration.dtype)
    acceleration.mul_(beta).add_(wide - previous, alpha=1 - beta)
    previous.copy_(G)
    return torch.add(wide, acceleration, alpha=alpha)
