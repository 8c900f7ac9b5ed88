"""Norms, factors and scaling of pairs, on whole tensors and on shards.

Shape legend: U units of a pair, N entries along the dimension that carries them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from stackloom.core.errors import FitError
from stackloom.plugins.optimizer.sharding import bounds, local
from stackloom.plugins.transform.wisca.pairs import ID, Member, Pair


@dataclass(frozen=True)
class Place:
    """What of a parameter this worker holds: indices [first, first + count) along `dim`; all of it with dim -1."""

    dim: int = -1
    first: int = 0
    count: int = 0
    group: Any = None


def place(tensor: Tensor, name: str) -> Place:
    """Say what of a tensor this worker holds.

    Raises:
        FitError: it is cut along two dimensions, or holds pending sums.
    """
    if not isinstance(tensor, DTensor):
        return Place()
    cuts = [(index, cut) for index, cut in enumerate(tensor.placements) if not isinstance(cut, Replicate)]
    if not cuts:
        return Place()
    if len(cuts) > 1 or not isinstance(cuts[0][1], Shard):
        raise FitError(f"{name} is laid out as {tuple(tensor.placements)}; one cut is understood", where=ID)
    index, cut = cuts[0]
    group = tensor.device_mesh.get_group(index)
    edges = bounds(tensor.shape[cut.dim], dist.get_world_size(group))
    rank = dist.get_rank(group)
    return Place(cut.dim, edges[rank], edges[rank + 1] - edges[rank], group)


def held(member: Member, where: Place, values_N: Tensor) -> Tensor:
    """Return the part of per-index values that concerns what this worker holds."""
    return values_N[where.first : where.first + where.count] if where.dim == member.dim else values_N


@torch.no_grad()
def norms(pairs: Sequence[Pair], power: int) -> list[tuple[Tensor, Tensor]]:
    """Return per pair the norms (U,), float64, of the multiplied and of the divided side, over all workers.

    Args:
        pairs: of the model.
        power: 1 sums magnitudes, 2 takes the root of the sum of squares.
    """
    sums = [
        (torch.zeros(pair.units, dtype=torch.float64), torch.zeros(pair.units, dtype=torch.float64)) for pair in pairs
    ]
    pending: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for pair, sides in zip(pairs, sums, strict=True):
        for member in pair.members:
            if not member.normed:
                continue
            where = place(member.parameter, member.name)
            part_U = _sums(member, where, pair.units, power)
            if where.group is None:
                sides[not member.up].add_(part_U)
            else:
                pending.setdefault(where.group, []).append((sides[not member.up], part_U))
    for group, parts in pending.items():  # one exchange for the whole model
        device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
        flat = torch.cat([part for _, part in parts]).to(device)
        dist.all_reduce(flat, group=group)
        for (side, _), piece in zip(parts, flat.cpu().split([len(part) for _, part in parts]), strict=True):
            side.add_(piece)
    return [(up.pow(1 / power), down.pow(1 / power)) for up, down in sums]


def _sums(member: Member, where: Place, units: int, power: int) -> Tensor:
    weight = local(member.parameter).detach()
    others = [dim for dim in range(weight.ndim) if dim != member.dim]
    if others:
        norm_N = torch.linalg.vector_norm(weight, power, dim=others, dtype=torch.float64)
    else:
        norm_N = weight.double().abs()
    sums_N, unit_N = norm_N.pow(power).cpu(), held(member, where, member.units)
    mine = unit_N >= 0
    return torch.zeros(units, dtype=torch.float64).index_add_(0, unit_N[mine], sums_N[mine])


def factors(up_U: Tensor, down_U: Tensor, *, limit: float, power_of_two: bool) -> Tensor:
    """Return s (U,) = sqrt(down / up), so that s up = down / s; clipped, and rounded to powers of two on request.

    Rounding is to the nearest in log space, halves to even, so that a second call changes nothing.

    Example:
        >>> factors(torch.tensor([6.0]), torch.tensor([1.0]), limit=1e3, power_of_two=False)
        tensor([0.4082])
    """
    scale_U = (down_U / up_U).sqrt().clamp(1 / limit, limit)
    return torch.exp2(scale_U.log2().round()) if power_of_two else scale_U


def factor_of(member: Member, scale_U: Tensor) -> Tensor:
    """Return what each index (N,) of a member is multiplied by: s or 1/s, 1 where it is of another pair."""
    factor_N = scale_U[member.units.clamp(min=0)]
    return torch.where(member.units >= 0, factor_N if member.up else 1 / factor_N, 1.0)


@torch.no_grad()
def multiply(tensor: Tensor, member: Member, factor_N: Tensor) -> None:
    """Multiply a tensor of a member's shape in place; each entry is rounded once."""
    where = place(tensor, member.name)
    piece = local(tensor)
    shape = [1] * piece.ndim
    shape[member.dim] = -1
    factor = held(member, where, factor_N).to(piece.device).reshape(shape)
    piece.copy_(piece.double() * factor)
