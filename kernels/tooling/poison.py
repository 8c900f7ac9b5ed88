"""Fresh memory that is visibly unwritten: NaN in floats, the largest value in integers.

A kernel that forgets an element leaves whatever was in memory, often zeros or an earlier right answer. Poisoned, it
leaves a NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Inside, ``torch.empty`` and its kin return poisoned memory, below custom ops and on every device.

    It is torch's own ``fill_uninitialized_memory``, which acts in deterministic mode only; so an op that falls back on
    a non-deterministic torch kernel raises here as well.
    """
    fill, enabled, warn_only = (
        deterministic.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fill


def poisoned_view(values: torch.Tensor, pad: int = 3) -> torch.Tensor:
    """The same values in every second column of rows ``pad`` apart, amid poison: contiguous in no dimension.

    Args:
        values: (..., K), any dtype.
        pad: unused columns after each row.

    Returns:
        A view of shape (..., K) with last stride 2, on the same device.
    """
    poison = float("nan") if values.is_floating_point() else torch.iinfo(values.dtype).max
    columns = values.shape[-1]
    base = torch.full((*values.shape[:-1], 2 * columns + pad), poison, dtype=values.dtype, device=values.device)
    view = base[..., : 2 * columns : 2]
    return view.copy_(values)
