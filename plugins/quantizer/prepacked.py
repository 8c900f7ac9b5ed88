"""Quantized layers on a CPU: weights laid out once for its int8 instructions, products exact.

fbgemm multiplies unsigned by signed bytes, and without VNNI it adds the products of two neighbouring columns in 16
bits, where they saturate. There a weight is split, q = c + r: no two neighbours in c can saturate whatever the
activation, and r holds what they were cut by. Of SmolLM2-135M's int8 weights r has 0.3 to 1.1 per cent; of int4
weights, nothing.

Small groups take float32 products instead, of the bytes scaled on the way: a call of fbgemm per group costs more.

Shape legend: M tokens, N out features, K in features, G groups of a row, g columns of a group.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from stackloom.plugins.quantizer.grid import SMALLEST_SCALE, dequantize_groups

LARGEST_CODE, ZERO = 127, 128  # activations in [-127, 127], held as unsigned bytes above 128
MOST_OF_A_PAIR = (2**15 - 1) // 255  # two weights of one sign that a pair of unsigned bytes cannot push beyond int16
SMALLEST_GROUP = 2**15  # weights; below, what a call of fbgemm costs (12 to 30 microseconds) exceeds what it saves
LONGEST_PACKED = (2**31 - 1) // (255 * 128)  # columns; int32 sums of unsigned by signed bytes hold no more
MOST_SPARSE = 0.03  # share of weights in the rest from which on dense products are faster


@functools.cache
def available() -> bool:
    """Return whether fbgemm is there and exact, on drawn operands and on those that come nearest to its limits."""
    try:
        return _exact(Fbgemm)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


@functools.cache
def saturates() -> bool:
    """Return whether fbgemm's sums of two products saturate on this CPU, as they do without VNNI."""
    return not _exact(_packed_product)


def _exact(make: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> bool:
    draw = torch.Generator().manual_seed(0)
    q = torch.randint(-128, 128, (24, 521), generator=draw, dtype=torch.int8)
    q[0], q[1], q[2], q[3] = 127, -128, 7, -8
    x = torch.randint(-LARGEST_CODE, LARGEST_CODE + 1, (9, 521), generator=draw).float()
    x[0], x[1] = LARGEST_CODE, -LARGEST_CODE
    return torch.equal(make(q)(x).double(), x.double() @ q.double().t())


def _packed_product(q_NK: Tensor) -> Callable[[Tensor], Tensor]:
    """Return x q' as fbgemm computes it, from (M, K) float32 integers to (M, N) float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
        ones, zeros = torch.ones(len(q_NK), dtype=torch.float64), torch.zeros(len(q_NK), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(q_NK, ones, zeros, 0)
        packed = torch.ops.quantized.linear_prepack(weight, None)
    call = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    return lambda x_MK: call(x_MK, 1.0, ZERO, packed)


def split(q_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return (c, r), both (N, K) int8, q = c + r, where the weights of one sign in a pair of c sum to 128 at most.

    Example:
        >>> split(torch.tensor([[127, 100, -128, 5]], dtype=torch.int8))
        (tensor([[ 28, 100, -128,   5]], dtype=torch.int8), tensor([[99,  0,  0,  0]], dtype=torch.int8))
    """
    columns = q_NK.shape[1]
    pairs = torch.nn.functional.pad(q_NK, (0, columns % 2)).to(torch.int16).unflatten(1, (-1, 2))
    kept = pairs.clone()
    for sign in (1, -1):
        parts = (pairs * sign).clamp_min(0)
        beyond = (parts.sum(-1, keepdim=True, dtype=parts.dtype) - MOST_OF_A_PAIR).clamp_min(0)
        kept.scatter_add_(-1, parts.argmax(-1, keepdim=True), -sign * beyond)
    return tuple(part.flatten(1)[:, :columns].to(torch.int8).contiguous() for part in (kept, pairs - kept))


class Fbgemm:
    """x q' on bytes packed once: (M, K) float32 integers in [-127, 127] to (M, N) float32.

    The sums are made in int32 and are exact as long as they stay below 2^24; beyond that they are rounded to float32,
    once for each part of the weight.

    Args:
        q_NK: int8.
    """

    def __init__(self, q_NK: Tensor) -> None:
        kept_NK, rest_NK = split(q_NK) if saturates() else (q_NK, torch.zeros_like(q_NK))
        share = rest_NK.count_nonzero().item() / max(1, rest_NK.numel())
        self._products = [_packed_product(part) for part in ([kept_NK, rest_NK] if share > MOST_SPARSE else [kept_NK])]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support is in beta.*")
            self._rest = rest_NK.float().to_sparse_csr() if 0 < share <= MOST_SPARSE else None

    def __call__(self, x_MK: Tensor) -> Tensor:
        """Return x q', (M, N) float32."""
        sums_MN = self._products[0](x_MK)
        for more in self._products[1:]:
            sums_MN.add_(more(x_MK))
        return sums_MN if self._rest is None else sums_MN.add_((self._rest @ x_MK.t()).t())


class PrepackedLinear:
    """A layer, or several with one input side by side, (M, K) to (M, N) float32: as `QuantizedLinear` computes it.

    Args:
        q_NK: int8.
        scale_NG: float32, or int32 multipliers.
        amplifier_N: what int32 multipliers are divided by; None with float scales.
        bias_N: float32, or None.
        input_scale: (1,) float32, one grid for all tokens; None for one per token.

    Example:
        >>> layer = PrepackedLinear(torch.tensor([[2, -1]], dtype=torch.int8), torch.tensor([[0.5]]))
        >>> layer(torch.tensor([[127.0, 0]]))
        tensor([[127.]])
    """

    def __init__(
        self,
        q_NK: Tensor,
        scale_NG: Tensor,
        amplifier_N: Tensor | None = None,
        bias_N: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> None:
        self._group = q_NK.shape[1] // scale_NG.shape[1]
        self._amplifier_N, self._bias_N, self._input_scale = amplifier_N, bias_N, input_scale
        if in_integers(len(q_NK), self._group, q_NK.shape[1]):
            self._products = [Fbgemm(part.contiguous()) for part in q_NK.split(self._group, dim=1)]
            self._scales: Sequence[Tensor] = scale_NG.t().contiguous().unbind()
        else:
            self._products, self._q_NK = [], q_NK.contiguous()
            self._scale_NG = scale_NG if amplifier_N is None else scale_NG.float() / amplifier_N[:, None]

    def __call__(self, x_MK: Tensor) -> Tensor:
        """Return (M, N) float32; NaN for a token with NaN or infinity."""
        codes_MK, steps_M1 = codes(x_MK, self._input_scale)
        if not self._products:
            output_MN = F.linear(codes_MK, dequantize_groups(self._q_NK, self._scale_NG, torch.float32))
        elif self._amplifier_N is not None:
            output_MN = self._integers(codes_MK).float() / self._amplifier_N  # a power of two: exact
        elif len(self._products) == 1:
            output_MN = self._products[0](codes_MK).mul_(self._scales[0])
        else:
            output_MN = torch.zeros(len(x_MK), len(self._scales[0]))
            for part_Mg, product, scale_N in self._parts(codes_MK):
                output_MN.addcmul_(product(part_Mg), scale_N)
        output_MN.mul_(steps_M1)
        return output_MN if self._bias_N is None else output_MN.add_(self._bias_N)

    def _integers(self, codes_MK: Tensor) -> Tensor:
        """Return the sums over groups of multiplier times product, (M, N) int32."""
        sums_MN = torch.zeros(len(codes_MK), len(self._scales[0]), dtype=torch.int32)
        for part_Mg, product, multiplier_N in self._parts(codes_MK):
            sums_MN.addcmul_(product(part_Mg).to(torch.int32), multiplier_N)
        return sums_MN

    def _parts(self, codes_MK: Tensor) -> zip[tuple[Tensor, Fbgemm, Tensor]]:
        return zip(codes_MK.split(self._group, dim=1), self._products, self._scales, strict=True)


def in_integers(rows: int, group: int, columns: int) -> bool:
    """Return whether a layer's groups are large enough for integer products; a whole row always is."""
    return group == columns or rows * group >= SMALLEST_GROUP


def codes(x_MK: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what `kernels.act_quant` makes, the codes in float32, in less time.

    Args:
        x_MK: (M, K) floats.
        scale: (1,) float32, the grid of all tokens; None for a grid per token.

    Returns:
        round(x / s) in [-127, 127] (M, K) and s (M, 1), both float32; 0 and NaN for a token that is not finite.
    """
    wide_MK = x_MK.float()
    largest_M1 = wide_MK.abs().amax(-1, keepdim=True)
    if scale is None:
        steps_M1 = (largest_M1 / LARGEST_CODE).clamp_min(SMALLEST_SCALE)
        codes_MK = (wide_MK / steps_M1).round_()
    else:
        steps_M1 = scale.expand(largest_M1.shape)
        codes_MK = (wide_MK / scale).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    not_finite = largest_M1 - largest_M1  # 0, or NaN for infinity and NaN
    if math.isnan(not_finite.sum().item()):
        codes_MK = torch.where(not_finite == 0, codes_MK, 0.0)
    return codes_MK, steps_M1 + not_finite
