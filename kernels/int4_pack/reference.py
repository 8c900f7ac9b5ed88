"""Two's-complement int4 pairs in plain torch: the truth that every other implementation answers to.

Shapes: ``...`` any leading dimensions, K values a row, P = ceil(K / 2) bytes a row.
"""

from __future__ import annotations

import torch

LOWEST, HIGHEST = -8, 7


def pack(values: torch.Tensor) -> torch.Tensor:
    """byte[i] = (values[2i] & 15) | (values[2i + 1] & 15) << 4; an odd row's last high nibble is 0.

    Args:
        values: (..., K) int8 in [-8, 7].

    Returns:
        (..., P) uint8, contiguous.

    Raises:
        ValueError: a value is outside of [-8, 7].
    """
    if values.numel():
        smallest, largest = torch.aminmax(values)
        if smallest < LOWEST or largest > HIGHEST:
            raise out_of_range(values)
    even, odd = values[..., 0::2], values[..., 1::2]
    packed = torch.empty(even.shape, dtype=torch.uint8, device=values.device).copy_(even & 15)
    packed[..., : odd.shape[-1]] |= (odd & 15).to(torch.uint8) << 4
    return packed


def unpack(packed: torch.Tensor, length: int) -> torch.Tensor:
    """The inverse of :func:`pack`; the high nibble that pads an odd row is not read.

    Args:
        packed: (..., P) uint8, or the same bytes as int8.
        length: K, either 2P or 2P - 1.

    Returns:
        (..., K) int8 in [-8, 7], contiguous.
    """
    signed = packed.view(torch.int8)
    low, high = (signed << 4) >> 4, signed >> 4  # an int8 shifted right keeps its sign
    values = torch.stack((low, high), dim=-1).flatten(-2)
    return values if length == values.shape[-1] else values[..., :length].clone(memory_format=torch.contiguous_format)


def out_of_range(values: torch.Tensor) -> ValueError:
    """The error for values that are no int4; names the extremes."""
    smallest, largest = (extreme.item() for extreme in torch.aminmax(values))
    return ValueError(f"int4 values must lie in [{LOWEST}, {HIGHEST}], got {smallest} to {largest}")
