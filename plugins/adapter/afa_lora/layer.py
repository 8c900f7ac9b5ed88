"""The layer that AFA-LoRA wraps with: a low-rank branch with a blend of activation and identity inside.

Shape legend: N out features, K in features, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.kernels.afa_lora import afa_lora, blend
from stackloom.plugins.adapter.low_rank import LowRankLinear


class AfaLinear(LowRankLinear):
    """`base_layer(x) + scaling * B phi(A dropout(x))` with phi(z) = beta sigma(z) + (1 - beta) z.

    Three paths give one function. At beta 0 it is LoRA's own code. Else an op that saves z alone. Under `torch.compile`
    the blend is written out: the compiler fuses it, and beta, a tensor, can reach 0 without another graph.

    Args:
        base_layer: the layer that is wrapped; its parameters are not changed.
        beta: 0-d, float32; layers on one device share it.
        activation: sigma.
        implementation: which kernel runs.
        sizes: as `LowRankLinear` takes them.

    Attributes:
        beta: a buffer, so that it moves with the model; in no file.
        started: whether anybody has said what beta is.
        linear: whether beta is 0, known without asking the device.
        enabled: False gives the base alone.
    """

    beta: Tensor

    def __init__(
        self, base_layer: nn.Linear, *, beta: Tensor, activation: str, implementation: str, **sizes: Any
    ) -> None:
        super().__init__(base_layer, **sizes)
        self.register_buffer("beta", beta, persistent=False)
        self.activation, self.implementation = activation, implementation
        self.started, self.linear, self.enabled = False, False, True

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N).

        Raises:
            FitError: training without a schedule: nobody called on_step.
        """
        if not self.enabled:
            return self.base_layer(x)
        if self.training and not self.started:
            raise FitError(
                "training began without a step of the schedule, and beta depends on how many there will be",
                where="adapter.afa-lora",
                fix="call on_step(step, steps) before each optimizer step",
            )
        if torch.compiler.is_compiling() or self.linear:
            return super().forward(x)
        output = self.base_layer(x)
        kept = F.dropout(x, self.dropout, self.training).to(output.dtype)  # autocast makes output narrower than x
        A, B = self.lora_A.weight.to(output.dtype), self.lora_B.weight.to(output.dtype)
        on_cpu = self.implementation == "auto" and output.device.type == "cpu"
        implementation = "reference" if on_cpu else self.implementation
        return afa_lora(kept, A, B, self.beta, self.activation, self.scaling, output, implementation=implementation)

    def between(self, inner: Tensor) -> Tensor:
        """phi, computed in float32 or wider and rounded to the dtype of `inner`, (..., R)."""
        wide = inner.to(torch.promote_types(inner.dtype, torch.float32))
        return blend(wide, self.beta, self.activation).to(inner.dtype)

    @torch.no_grad()
    def residual(self, x: Tensor) -> Tensor:
        """What a merge would leave out for inputs (..., K): scaling * B (phi(z) - z), (..., N)."""
        z = F.linear(x, self.lora_A.weight.to(x.dtype))
        return F.linear(self.between(z) - z, self.lora_B.weight.to(x.dtype)) * self.scaling
