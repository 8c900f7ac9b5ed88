"""Context parallelism: a sequence split over ranks, each of which holds consecutive tokens.

A segment maps the state at its start to the one at its end by S -> M S + N (paper page 2.7, consequence 3). Ranks share
these two matrices per head, once, and each composes those of the ranks before it into its own initial state. Nothing
else crosses ranks, and gradients flow back the same way.

Shape legend: B batch, T tokens of one rank, H heads, K key width, V value width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from . import chunk


def segment_map(k: Tensor, v: Tensor, g: Tensor, *, implementation: str = "reference") -> tuple[Tensor, Tensor]:
    """Return M (B, H, K, K) and N (B, H, K, V) of the segment, in the state's dtype.

    Columns of a state are independent, so one run on values [v, 0] from the state [0, I] ends in [N, M].

    Args:
        k, v, g: as :func:`stackloom.kernels.gated_delta.chunk` takes them; K + V at most 256.

    Raises:
        ValueError: K + V is too wide.
    """
    B, _, H, K = k.shape
    precise = torch.float64 if k.dtype == torch.float64 else torch.float32
    identity = torch.eye(K, dtype=precise, device=k.device).expand(B, H, K, K)
    start = torch.cat((identity.new_zeros(B, H, K, v.shape[-1]), identity), -1)
    silent = v.new_zeros(*v.shape[:3], K)
    end = chunk(k, k, torch.cat((v, silent), -1), g, start, implementation=implementation)[1]
    N, M = end.split([v.shape[-1], K], -1)
    return M, N


def compose(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The map of two segments in a row: (M2 M1, M2 N1 + N2).

    Example:
        >>> one, two = torch.ones(1, 1), 2 * torch.ones(1, 1)
        >>> compose((one, two), (two, one))
        (tensor([[2.]]), tensor([[5.]]))
    """
    return second[0] @ first[0], second[0] @ first[1] + second[1]


def context_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
    *,
    implementation: str = "reference",
) -> tuple[Tensor, Tensor]:
    """As :func:`chunk` on a sequence whose consecutive parts lie on the group's ranks, in rank order; from state zero.

    Args:
        q, k, v, g: this rank's tokens; ranks may hold different numbers of them.
        group: ranks that share the sequence, the default group if None.
        scale: as in :func:`chunk`.
        implementation: of the op.

    Returns:
        This rank's outputs, and the state after its tokens (on the last rank: of the whole sequence).
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    M, N = segment_map(k, v, g, implementation=implementation)
    gathered = all_gather(torch.cat((M, N), -1).contiguous(), dist.group.WORLD if group is None else group)
    K = k.shape[-1]
    state = torch.zeros_like(N)
    for earlier in range(size):  # every rank uses every map, so that each takes part in every gradient's exchange
        M_r, N_r = gathered[earlier].split([K, v.shape[-1]], -1)
        state = M_r @ state + N_r if earlier < rank else state + 0 * gathered[earlier].sum()
    return chunk(q, k, v, g, state, None, scale, implementation=implementation)
