"""One of two processes of test_muon_distributed.py: prints every parameter that differs from a single process."""

import copy
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from stackloom.plugins.optimizer.mona.config import MonaConfig
from stackloom.plugins.optimizer.muon.config import MuonConfig

CONFIGS = {
    "muon owner": MuonConfig(lr=0.1),
    "muon gather": MuonConfig(lr=0.1, sharded="gather", ns_form="gram"),
    "muon fused": MuonConfig(lr=0.1, row_parts={"*wide*": (20, 10, 3)}),
    "mona owner": MonaConfig(lr=0.1),
    "mona lite": MonaConfig(lr=0.1, buffers="lite", stochastic_rounding=True, sharded="gather"),
    "mona three": MonaConfig(lr=0.1, buffers="three", init_prev="first"),
}


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 6))


class Net(nn.Module):
    """Rows that do not divide by two, one row alone, a stack, vectors, and an embedding for AdamW."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 10)
        self.wide = nn.Linear(10, 33)
        self.tall = nn.Linear(33, 10)
        self.same = nn.Linear(33, 10)
        self.one = nn.Linear(10, 1)
        self.mlp = Experts()

    def forward(self, x):
        return x


def gradients(net, step):
    draw = torch.Generator().manual_seed(step)
    return {name: torch.randn(p.shape, generator=draw) for name, p in net.named_parameters()}


def run_alone(config):
    net = Net()
    optimizer = config.build(net.named_parameters())
    for step in range(5):
        for name, gradient in gradients(net, step).items():
            net.get_parameter(name).grad = gradient.clone()
        optimizer.step()
    return dict(net.named_parameters())


def run_sharded(config):
    alone, net = Net(), Net()
    fully_shard(net)
    optimizer = config.build(net.named_parameters())
    for step in range(5):
        for name, gradient in gradients(alone, step).items():
            p = net.get_parameter(name)
            p.grad = distribute_tensor(gradient, p.device_mesh, p.placements)
        optimizer.step()
        if step == 2:  # resumed halfway
            saved = optimizer.state_dict()
            optimizer = config.build(net.named_parameters())
            optimizer.load_state_dict(saved)
    states = [state for p, state in optimizer.state.items() if "momentum_buffer" in state]
    assert all(isinstance(state["momentum_buffer"], DTensor) for state in states)
    return {name: p.full_tensor() for name, p in net.named_parameters()}


def run_data_parallel(config):
    """Different batches; the gradients that DDP averaged are given to one process alone."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    twin = copy.deepcopy(net)
    wrapped = DistributedDataParallel(net)
    optimizer, single = config.build(net.named_parameters()), config.build(twin.named_parameters())
    for step in range(5):
        draw = torch.Generator().manual_seed(10 * step + dist.get_rank())
        optimizer.zero_grad()
        wrapped(torch.randn(4, 6, generator=draw)).square().mean().backward()
        for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
            other.grad = mine.grad.clone()
        optimizer.step()
        single.step()
    first = {name: p.detach().clone() for name, p in net.named_parameters()}
    for value in first.values():
        dist.broadcast(value, 0)
    return dict(net.named_parameters()), dict(twin.named_parameters()), first


def differences(label, ours, theirs):
    return [f"{label}: {name}" for name in theirs if not torch.equal(ours[name].detach(), theirs[name].detach())]


def main(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = []
    for label, config in CONFIGS.items():
        found += differences(f"{label} fully_shard", run_sharded(config), run_alone(config))
        ours, alone, first = run_data_parallel(config)
        found += differences(f"{label} ddp", ours, alone) + differences(f"{label} ddp ranks", ours, first)
    dist.barrier()
    dist.destroy_process_group()
    print("\n".join(found) or "equal")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
