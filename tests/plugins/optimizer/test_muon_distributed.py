"""Muon and MONA over two processes: given the same full gradients, the step is bit-equal to one process."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from stackloom.core.errors import FitError
from stackloom.plugins.optimizer.sharding import bounds, owners, row_shards


def test_two_processes_take_the_steps_of_one(tmp_path):
    """fully_shard with owners and with gathering, and DDP; uneven and empty shards, stacks, fused weights, a resume."""
    worker = Path(__file__).with_name("distributed_worker.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = [rank.communicate(timeout=600) for rank in ranks]
    assert [out.strip() for out, _ in answers] == ["equal", "equal"], answers


def test_owners_share_the_work_and_every_rank_computes_the_same():
    costs = [1.0, 8.0, 3.0, 3.0, 2.0, 7.0]
    chosen = owners(costs, 3)
    loads = [sum(cost for cost, who in zip(costs, chosen, strict=True) if who == rank) for rank in range(3)]
    assert max(loads) <= sum(costs) / 3 + max(costs) / 3  # the bound of the greedy rule is 4/3 of the optimum
    assert owners(costs, 3) == chosen


def test_a_whole_parameter_has_no_shards():
    assert row_shards(torch.nn.Parameter(torch.ones(2, 3)), "w") is None


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (1, 2), (33, 2), (8, 2), (5, 3)])
def test_bounds_are_those_of_torchs_chunks(rows, size):
    chunks = [len(chunk) for chunk in torch.ones(rows).chunk(size)]
    ends = bounds(rows, size)
    held = [last - first for first, last in itertools.pairwise(ends)]
    assert held == chunks + [0] * (size - len(chunks))


@pytest.mark.parametrize("placements", [(Shard(1),), (Replicate(), Shard(1))])
def test_columns_cannot_be_made_whole(placements, monkeypatch):
    monkeypatch.setattr("stackloom.plugins.optimizer.sharding.DTensor", torch.Tensor)
    monkeypatch.setattr(torch.Tensor, "placements", placements, raising=False)
    with pytest.raises(FitError, match="only shards of its rows"):
        row_shards(torch.ones(2, 2), "w")
