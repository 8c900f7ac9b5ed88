"""Int4 layers on a GPU: weights packed as `kernels.w4a8_gemm` reads them, activations rounded by `kernels.act_quant`.

Shape legend: M tokens, N out features, K in features, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stackloom.kernels.act_quant import quantize_activations
from stackloom.kernels.w4a8_gemm import accumulator_bound, pack_weight, w4a8_gemm, w4a8_gemm_group, w4a8_gemm_integer

GROUP_MULTIPLE = 32  # columns; the kernels' steps never cross a group
OUTPUTS = (torch.float32, torch.bfloat16, torch.float16)


def suits(bits: int, group: int, columns: int) -> bool:
    """Return whether the kernels have a layer's format: int4, whole rows or groups of a multiple of 32."""
    return bits == 4 and (group == columns or group % GROUP_MULTIPLE == 0)


class KernelLinear:
    """A layer as `QuantizedLinear` computes it, in two kernels: (M, K) to (M, N).

    Args:
        q_NK: int8 in [-8, 7].
        scale_NG: float32, or int32 multipliers.
        amplifier_N: what int32 multipliers are divided by, powers of two; None with float scales.
        bias_N: float32, or None.
        input_scale: (1,) float32, one grid for all tokens; None for one per token.
        implementation: of the kernels; "auto" takes Triton where it runs and agrees with the reference.

    Raises:
        ValueError: integer scales with which a sum can leave int32.

    Example:
        >>> q, scale = torch.tensor([[2, -1]], dtype=torch.int8), torch.tensor([[0.5]])
        >>> KernelLinear(q, scale, implementation="reference")(torch.tensor([[127.0, 0]]))
        tensor([[127.]])
    """

    def __init__(
        self,
        q_NK: Tensor,
        scale_NG: Tensor,
        amplifier_N: Tensor | None = None,
        bias_N: Tensor | None = None,
        input_scale: Tensor | None = None,
        implementation: str = "auto",
    ) -> None:
        self._columns, self._group = q_NK.shape[1], q_NK.shape[1] // scale_NG.shape[1]
        self._packed, self._scale_NG = pack_weight(q_NK), scale_NG
        self._bias_N, self._input_scale, self._implementation = bias_N, input_scale, implementation
        self._inverse_N: Tensor | None = None
        if amplifier_N is not None:
            self._inverse_N = 1 / amplifier_N.float()
            self._bound = accumulator_bound(self._packed, scale_NG, self._group, self._columns)

    def __call__(self, x_MK: Tensor) -> Tensor:
        """Return (M, N) in x's dtype (float32 for float64); NaN for a token with NaN or infinity."""
        chosen = self._implementation
        dtype = x_MK.dtype if x_MK.dtype in OUTPUTS else torch.float32
        q_MK, steps_M1 = quantize_activations(x_MK, self._input_scale, implementation=chosen)
        before, after = (q_MK, steps_M1, self._packed), (self._bias_N, dtype)
        if self._inverse_N is not None:
            scales = (self._scale_NG, self._inverse_N, self._group)
            return w4a8_gemm_integer(*before, *scales, *after, self._bound, implementation=chosen)
        if self._group == self._columns:
            return w4a8_gemm(*before, self._scale_NG, *after, implementation=chosen)
        return w4a8_gemm_group(*before, self._scale_NG, self._group, *after, implementation=chosen)
