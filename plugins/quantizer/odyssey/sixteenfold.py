"""Per-channel W4A8 without unpacking: a nibble in the high half of a byte is 16 times its value.

Shape legend: M tokens, N out features, K in features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stackloom.plugins.quantizer.integer_matmul import int8_matmul
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear


def widened(packed_NP: Tensor) -> tuple[Tensor, Tensor]:
    """Return 16 times the even and 16 times the odd elements of rows of int4 pairs: one shift, one mask.

    Args:
        packed_NP: (N, K / 2) uint8, the even element in the low nibble.

    Returns:
        two (N, K / 2) int8 tensors.

    Source: OdysseyLLM, conversion from SINT4 to SINT8.
    """
    return (packed_NP << 4).view(torch.int8), (packed_NP & 0xF0).view(torch.int8)


class SixteenfoldLinear(QuantizedLinear):
    """A per-channel W4A8 layer whose integer sums are 16 times the true ones, bit-identical after the division.

    The sums stay in int32 for up to 131,071 in features. With integer scales the sums would be 16 times nearer to the
    end of int32, so after `amplify` the layer unpacks like any other. On a CPU `forward` prepacks it like any other.
    """

    def from_stored(self, x_MK: Tensor) -> Tensor:
        """Return the output (M, N) in float32, of the nibbles as they are stored."""
        if self.amplifier is not None:
            return super().from_stored(x_MK)
        q_MK, input_scale = self.quantize_input(x_MK)
        even_NP, odd_NP = widened(self.qweight)
        sums_MN = int8_matmul(q_MK[:, 0::2], even_NP) + int8_matmul(q_MK[:, 1::2], odd_NP)
        output_MN = sums_MN.float() / 16 * self.scale[:, 0] * input_scale
        return output_MN if self.bias is None else output_MN + self.bias.float()
