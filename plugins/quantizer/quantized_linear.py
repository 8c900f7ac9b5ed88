"""A linear layer with int8 or packed int4 weights, and activations in float or int8.

Shape legend: M tokens, N out features, K in features, G groups of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.kernels.int4_pack import pack_int4, unpack_int4
from stackloom.plugins.quantizer.grid import dequantize_groups, quantize_tensor, quantize_tokens
from stackloom.plugins.quantizer.integer_matmul import int8_matmul
from stackloom.plugins.quantizer.kernel_linear import KernelLinear, suits
from stackloom.plugins.quantizer.prepacked import LONGEST_PACKED, PrepackedLinear, available, in_integers


class QuantizedLinear(nn.Module):
    """`x W' + b` with W on an integer grid.

    With float activations the weight is dequantized to the input's dtype for the product. With int8 activations each
    token is quantized as it comes (`quantize_tokens`), the products are summed in integers, per group of the weight,
    and the sums are scaled in float32 (on a CPU, groups too small for that: in float32 all the way); this path has no
    gradient. After `amplify` the scales are integers too. The first call lays the weight out for a CPU's int8
    instructions, which takes another byte per weight, or on a GPU for the kernels of `kernels.w4a8_gemm`, which takes
    half a byte; a compiled graph takes the weight as it is stored.

    Args:
        in_features, out_features: K and N.
        bits: 4 (packed in pairs) or 8.
        group: elements of a row that share a scale; divides K.
        int8_activations: how inputs are treated.
        bias: whether there is one; it keeps the layer's dtype.
        static: whether there is a place for a scale of the inputs that calibration found.
        device, dtype: of the float layer that this one stands for.

    Attributes:
        qweight: (N, K) int8, or (N, ceil(K / 2)) uint8 with two int4 each; zero until `put`.
        scale: (N, G) float32, also after casts of the model; int32 after `amplify`.
        amplifier: (N,) int32, what integer scales are divided by; None while scales are floats.
        input_scale: (1,) float32 with `static`: positive for one grid for all tokens, 0 for a grid per token.
    """

    qweight: Tensor
    scale: Tensor
    amplifier: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        group: int,
        int8_activations: bool,
        bias: bool,
        static: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.group = in_features, out_features, bits, group
        self.int8_activations, self.dtype = int8_activations, dtype
        width = in_features if bits == 8 else (in_features + 1) // 2
        kind = torch.int8 if bits == 8 else torch.uint8
        self.register_buffer("qweight", torch.zeros(out_features, width, dtype=kind, device=device))
        self.register_buffer("scale", torch.zeros(out_features, in_features // group, device=device))
        self.register_buffer("amplifier", None)
        self.register_buffer("input_scale", torch.zeros(1, device=device) if static else None)
        self._one_grid = False  # of `input_scale`, which a compiled graph must not look into
        self._layout: PrepackedLinear | KernelLinear | None = (
            None  # made by a call that finds other tensors than the last
        )
        self._layout_of: tuple[tuple[int, int], ...] = ()
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    @classmethod
    def like(
        cls, linear: nn.Linear, *, bits: int, group: int, int8_activations: bool, static: bool = False
    ) -> QuantizedLinear:
        """Return an empty layer of a linear layer's sizes, device, dtype and mode."""
        made = cls(
            linear.in_features,
            linear.out_features,
            bits=bits,
            group=group,
            int8_activations=int8_activations,
            bias=linear.bias is not None,
            static=static,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        return made.train(linear.training)

    @torch.no_grad()
    def put(self, q_NK: Tensor, scale_NG: Tensor, bias_N: Tensor | None) -> None:
        """Take integers (N, K), scales (N, G) and a bias (N,)."""
        self.qweight.copy_(q_NK if self.bits == 8 else pack_int4(q_NK))
        self.scale.copy_(scale_NG)
        if self.bias is not None and bias_N is not None:
            self.bias.copy_(bias_N)

    @torch.no_grad()
    def put_input_scale(self, scale: float) -> None:
        """Quantize every input on the grid of this scale; 0 goes back to a grid per token.

        Raises:
            ValueError: the layer has no place for it, or it is negative or not finite.
        """
        if self.input_scale is None or not 0 <= scale < math.inf:
            raise ValueError(f"no place for an input scale of {scale}")
        self.input_scale.fill_(scale)
        self._one_grid = scale > 0

    def amplify(self, multiplier_NG: Tensor, amplifier_N: Tensor) -> None:
        """Hold the scales as integers `multiplier / amplifier`, so that groups are scaled and summed in int32.

        Whoever calls this has proved that no sum leaves int32.

        Args:
            multiplier_NG: (N, G) integers below 2^24, which float32 holds exactly.
            amplifier_N: (N,) positive powers of two.
        """
        self.scale = multiplier_NG.to(torch.int32)
        self.amplifier = amplifier_N.to(torch.int32)

    def integers(self) -> Tensor:
        """Return the weight's integers (N, K) int8."""
        if self.bits == 8:
            return self.qweight
        chosen = "auto" if self.qweight.is_cuda else "reference"
        return unpack_int4(self.qweight, self.in_features, implementation=chosen)

    def float_scale(self) -> Tensor:
        """Return what one step of the grid is worth (N, G) in float32."""
        return self.scale if self.amplifier is None else self.scale.float() / self.amplifier[:, None]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (N, K)."""
        return dequantize_groups(self.integers(), self.float_scale(), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in x's dtype.

        Raises:
            FitError: int8 activations, and x needs a gradient.
        """
        if not self.int8_activations:
            return F.linear(x, self.dequantized(x.dtype), self.bias)
        if torch.is_grad_enabled() and x.requires_grad:
            raise FitError(
                "int8 activations have no gradient", fix="train before quantizing, or run under torch.no_grad()"
            )
        with torch.no_grad():
            x_MK = x.reshape(-1, self.in_features)
            if not torch.compiler.is_compiling() and (self.prepackable or self._suits_kernels):
                output_MN = self._laid_out()(x_MK).to(x.dtype)
            elif x.device.type == "cpu" and not in_integers(self.out_features, self.group, self.in_features):
                output_MN = self._in_floats(x_MK).to(x.dtype)  # as prepacked
            else:
                output_MN = self.from_stored(x_MK).to(x.dtype)
        return output_MN.reshape(*x.shape[:-1], self.out_features)

    def _laid_out(self) -> PrepackedLinear | KernelLinear:
        """Return the layer in the layout of its device, made anew after any change of its tensors."""
        tensors = [
            each for each in (self.qweight, self.scale, self.amplifier, self.input_grid, self.bias) if each is not None
        ]
        now = tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors)
        if self._layout is None or now != self._layout_of:
            self._layout, self._layout_of = prepack([self]), now
        return self._layout

    @property
    def prepackable(self) -> bool:
        """Whether the weight can be laid out for int8 instructions where it lies."""
        fits = self.int8_activations and self.in_features <= LONGEST_PACKED
        return fits and self.qweight.device.type == "cpu" and available()

    @property
    def _suits_kernels(self) -> bool:
        return self.int8_activations and self.qweight.is_cuda and suits(self.bits, self.group, self.in_features)

    @property
    def input_grid(self) -> Tensor | None:
        """The scale of all inputs, (1,) float32; None with a grid per token."""
        return self.input_scale if self._one_grid else None

    def quantize_input(self, x_MK: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs as int8 (M, K) in [-127, 127] and their float32 scale, (M, 1) or a scalar."""
        grid = self.input_grid
        return quantize_tokens(x_MK) if grid is None else quantize_tensor(x_MK, grid)

    def from_stored(self, x_MK: Tensor) -> Tensor:
        """Return the output (M, N) in float32, of the weights as they are stored; `forward` prepacks them on a CPU."""
        q_MK, input_scale = self.quantize_input(x_MK)
        w_NK, kind = self.integers(), self.scale.dtype
        sums_MN = torch.zeros(x_MK.shape[0], self.out_features, device=x_MK.device, dtype=kind)
        for place, first in enumerate(range(0, self.in_features, self.group)):
            part = slice(first, first + self.group)
            sums_MN = torch.addcmul(sums_MN, int8_matmul(q_MK[:, part], w_NK[:, part]).to(kind), self.scale[:, place])
        if self.amplifier is not None:
            sums_MN = sums_MN.float() / self.amplifier  # a power of two: exact
        output_MN = sums_MN * input_scale
        return output_MN if self.bias is None else output_MN + self.bias.float()

    def _in_floats(self, x_MK: Tensor) -> Tensor:
        """Return what `from_stored` does, the products rounded to float32 as they are summed."""
        q_MK, input_scale = self.quantize_input(x_MK)
        output_MN = F.linear(q_MK.float(), self.dequantized(torch.float32)) * input_scale
        return output_MN if self.bias is None else output_MN + self.bias.float()

    def extra_repr(self) -> str:
        """Describe the layer for `print(model)`."""
        scheme = describe(self.bits, self.group, self.in_features, self.int8_activations, self._one_grid)
        return f"{self.in_features}, {self.out_features}, {scheme}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast the layer, the scales in float32 all the way: `model.to(bfloat16)` must not change weights."""
        before, input_before = self.scale, self.input_scale
        super()._apply(fn, recurse)
        if self.scale.dtype != before.dtype:
            self.scale = before.to(self.scale.device)
        if input_before is not None and self.input_scale is not None:
            self.input_scale = input_before.to(self.input_scale.device)
        if self.bias is not None:
            self.dtype = self.bias.dtype
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._one_grid = self.input_scale is not None and self.input_scale.item() > 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy lays its weights out itself."""
        return self.__dict__ | {"_layout": None}


def prepack(layers: Sequence[QuantizedLinear]) -> PrepackedLinear | KernelLinear:
    """Lay out layers of one input side by side, as one layer whose rows are those of all.

    Args:
        layers: prepackable on a CPU, or int4 on a GPU; equal in what `alike` compares.
    """
    first = layers[0]
    with torch.no_grad():
        amplifiers = [each.amplifier for each in layers if each.amplifier is not None]
        biases = [
            torch.zeros(each.out_features, device=each.scale.device) if each.bias is None else each.bias.float()
            for each in layers
        ]
        kind = KernelLinear if first.qweight.is_cuda else PrepackedLinear
        return kind(
            torch.cat([each.integers() for each in layers]),
            torch.cat([each.scale for each in layers]),
            torch.cat(amplifiers) if amplifiers else None,
            torch.cat(biases) if any(each.bias is not None for each in layers) else None,
            None if first.input_grid is None else first.input_grid.clone(),
        )


def alike(layers: Sequence[QuantizedLinear]) -> bool:
    """Return whether layers of one input treat it alike, so that they can be laid out side by side."""
    grids = [None if each.input_grid is None else each.input_grid.item() for each in layers]
    kinds = {
        (each.in_features, each.group, each.amplifier is None, grid) for each, grid in zip(layers, grids, strict=True)
    }
    return len(kinds) == 1 and all(each.prepackable for each in layers)


def describe(bits: int, group: int, in_features: int, int8_activations: bool, static: bool = False) -> str:
    """Return the scheme for people: "W4 g64, A8 per token".

    Example:
        >>> describe(8, 576, 576, True)
        'W8 per channel, A8 per token'
    """
    weight = f"W{bits} per channel" if group == in_features else f"W{bits} g{group}"
    return f"{weight}, A8 {'static' if static else 'per token'}" if int8_activations else f"{weight}, float activations"
