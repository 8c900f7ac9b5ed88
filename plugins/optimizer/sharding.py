"""Whole matrices from row shards: to one owner and back, or to everybody.

Elementwise work runs on each worker's own rows; only the orthogonalisation needs a matrix whole. An owner receives the
shards of its matrices in one all-to-all and returns the rows of the results in another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from stackloom.core.errors import FitError

Orthogonalise = Callable[[list[int], list[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True)
class RowShards:
    """How a parameter's first dimension is dealt out over a process group.

    Attributes:
        group: the processes that hold a part each.
        shape: of the whole parameter.
        bounds: first row of each rank's part, and the end.
    """

    group: dist.ProcessGroup
    shape: tuple[int, ...]
    bounds: tuple[int, ...]

    def rows(self, rank: int) -> int:
        """How many of the first dimension a rank holds."""
        return self.bounds[rank + 1] - self.bounds[rank]

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return dist.get_rank(self.group)

    @property
    def row_elements(self) -> int:
        """Elements of one index of the first dimension."""
        return prod(self.shape[1:])


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's part of a tensor, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def row_shards(parameter: torch.Tensor, where: str) -> RowShards | None:
    """How a parameter is sharded; None where this worker holds it whole.

    Raises:
        FitError: it is split along another dimension than its first, or more than once.
    """
    if not isinstance(parameter, DTensor):
        return None
    splits = [place for place, kind in enumerate(parameter.placements) if not isinstance(kind, Replicate)]
    if not splits:
        return None
    kinds = [parameter.placements[place] for place in splits]
    if len(splits) > 1 or not isinstance(kinds[0], Shard) or kinds[0].dim != 0:
        raise FitError(
            f"a matrix is laid out as {tuple(parameter.placements)}; only shards of its rows can be made whole",
            where=where,
            fix="shard the model with fully_shard (its default shards rows), or leave this weight whole",
        )
    size = parameter.device_mesh.size(splits[0])
    rows = parameter.shape[0]
    shards = RowShards(parameter.device_mesh.get_group(splits[0]), tuple(parameter.shape), bounds(rows, size))
    if local(parameter).shape[0] != shards.rows(shards.rank):
        raise FitError(
            f"a worker holds {local(parameter).shape[0]} rows of {rows} where {shards.rows(shards.rank)} were expected",
            where=where,
            fix="shard the model with fully_shard and its default placement",
        )
    return shards


def bounds(rows: int, size: int) -> tuple[int, ...]:
    """First row of each rank's part, and the end: torch.chunk's equal parts, the last ones smaller or empty.

    Example:
        >>> bounds(10, 4)
        (0, 3, 6, 9, 10)
    """
    step = -(-rows // size)
    return tuple(min(rank * step, rows) for rank in range(size + 1))


def owners(costs: Sequence[float], size: int) -> list[int]:
    """A rank for each matrix: the dearest first, each to the rank with the least work; the same on every rank.

    Example:
        >>> owners([1.0, 5.0, 2.0], 2)
        [1, 0, 1]
    """
    load = [0.0] * size
    chosen = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        chosen[index] = min(range(size), key=lambda rank: (load[rank], rank))
        load[chosen[index]] += costs[index]
    return chosen


def orthogonalise_by_owner(
    shards: Sequence[RowShards], parts: Sequence[torch.Tensor], orthogonalise: Orthogonalise
) -> list[torch.Tensor]:
    """Each matrix on one rank of the group; every rank gets the rows of the results that belong to it.

    Args:
        shards: the layout of each matrix, all over one group.
        parts: this rank's rows of each, of one dtype.
        orthogonalise: (indices into ``shards``, whole matrices) to results of the same shapes.
    """
    group, rank = shards[0].group, shards[0].rank
    size = dist.get_world_size(group)
    owner = owners([prod(each.shape) * min(each.shape[-2:]) for each in shards], size)
    mine = [index for index, who in enumerate(owner) if who == rank]
    elements = [[each.rows(other) * each.row_elements for each in shards] for other in range(size)]
    sent = [sum(elements[rank][index] for index, who in enumerate(owner) if who == other) for other in range(size)]
    received = [sum(elements[other][index] for index in mine) for other in range(size)]

    order = sorted(range(len(shards)), key=lambda index: owner[index])  # stable: by owner, then as given
    outbox = torch.cat([parts[index].reshape(-1) for index in order])
    inbox = outbox.new_empty(sum(received))
    dist.all_to_all_single(inbox, outbox, received, sent, group=group)

    pieces = [box.split([elements[other][i] for i in mine]) for other, box in enumerate(inbox.split(received))]
    whole = [
        torch.cat([pieces[other][place] for other in range(size)]).view(shards[index].shape)
        for place, index in enumerate(mine)
    ]
    results = orthogonalise(mine, whole)
    rows = [
        result.split([shards[index].rows(other) for other in range(size)])
        for index, result in zip(mine, results, strict=True)
    ]
    back = torch.cat([each[other].reshape(-1) for other in range(size) for each in rows] or [outbox.new_empty(0)])
    home = torch.empty_like(outbox)
    dist.all_to_all_single(home, back, sent, received, group=group)
    split = dict(zip(order, home.split([parts[index].numel() for index in order]), strict=True))
    return [split[index].view(part.shape) for index, part in enumerate(parts)]


def orthogonalise_everywhere(
    shards: Sequence[RowShards], parts: Sequence[torch.Tensor], orthogonalise: Orthogonalise
) -> list[torch.Tensor]:
    """Every rank gathers and orthogonalises every matrix, and keeps its own rows.

    Args:
        shards, parts, orthogonalise: as in :func:`orthogonalise_by_owner`.
    """
    group, rank = shards[0].group, shards[0].rank
    size = dist.get_world_size(group)
    longest = [each.rows(0) * each.row_elements for each in shards]  # rank 0 holds the most
    outbox = torch.zeros(sum(longest), dtype=parts[0].dtype, device=parts[0].device)
    for slot, part in zip(outbox.split(longest), parts, strict=True):
        slot[: part.numel()] = part.reshape(-1)
    inbox = [torch.empty_like(outbox) for _ in range(size)]
    dist.all_gather(inbox, outbox, group=group)
    slots = [box.split(longest) for box in inbox]
    whole = [
        torch.cat([slots[other][i][: each.rows(other) * each.row_elements] for other in range(size)]).view(each.shape)
        for i, each in enumerate(shards)
    ]
    results = orthogonalise(list(range(len(shards))), whole)
    return [result[each.bounds[rank] : each.bounds[rank + 1]] for each, result in zip(shards, results, strict=True)]
