"""The workers of a stage as one of them sees them: its rows, how gradients meet, who holds which parameters.

`Solo` is one worker without collectives, `Replicas` hold whole copies of the model, `Shards` hold a piece each (FSDP2).
Counts and texts travel over gloo on the CPU, gradients on the model's device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stackloom.artifacts import Card, writing
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.planning import seed_for

BUCKET_BYTES = 25 * 2**20  # of gradients that one collective carries, as torch's DDP


class Solo:
    """One worker, which does everything.

    Attributes:
        rank, size: this worker's number, and how many there are.
        holder: the worker in whose files of a checkpoint this one's parameters and optimizer state lie.
    """

    rank, size, holder = 0, 1, 0

    def lay_out(self, model: Any) -> None:
        """Lay the model over the workers, in place, before the optimizer sees its parameters."""

    def seed(self, seed: int) -> int:
        """Return the seed of this worker's dropout."""
        return seed

    def total(self, value: float) -> float:
        """Return the sum of every worker's value."""
        return value

    def reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum every worker's gradients."""

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> float:
        """Scale the gradients down to a global norm of `limit`; return the norm before."""
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        return float(self.whole(norm))

    def agree(self, text: str) -> str:
        """Return what worker 0 says."""
        return text

    def writing(self, target: Path, card: Card) -> AbstractContextManager[Path]:
        """Give every worker the same folder to fill; it becomes `target` when all have left the block."""
        return writing(target, card)

    def whole(self, tensor: Tensor) -> Tensor:
        """Return all of a tensor of which each worker may hold a piece."""
        return tensor

    def local(self, tensor: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return this worker's piece, which shares memory, and its layout as JSON data for `rebuild`."""
        return tensor, {}

    def rebuild(self, piece: Tensor, layout: dict[str, Any]) -> Tensor:
        """Return the tensor of which `local` gave piece and layout."""
        return piece

    def settle(self, model: Any) -> None:
        """Forget what a forward pass without a backward pass left behind, before weights are rewritten."""

    def gather(self, model: Any) -> None:
        """Give worker 0 a whole model, on the CPU; nobody trains afterwards."""


class Replicas(Solo):
    """One of several workers that hold whole copies. The default process group is there."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist: Any = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def seed(self, seed: int) -> int:
        """Worker 0 draws as a single worker does, the others on their own."""
        return seed_for(seed, "worker", self.rank) if self.rank else seed

    def total(self, value: float) -> float:
        """Sum in float64, exact for counts."""
        summed = torch.tensor(value, dtype=torch.float64)
        self._dist.all_reduce(summed)
        return summed.item()

    def reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum in buckets; a parameter that got its gradient on some workers only counts zero on the others."""
        trained = list(parameters)
        used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
        self._dist.all_reduce(used, op=self._dist.ReduceOp.MAX)
        gradients = []
        for parameter, somewhere in zip(trained, used.tolist(), strict=True):
            if somewhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._dist.all_reduce(flat)
            for gradient, piece in zip(bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def agree(self, text: str) -> str:
        """Broadcast worker 0's text."""
        said = [text]
        self._dist.broadcast_object_list(said, src=0)
        return said[0]

    @contextmanager
    def writing(self, target: Path, card: Card) -> Iterator[Path]:
        """Worker 0 opens the folder and seals it once the others have written."""
        if self.rank == 0:
            with writing(target, card) as folder:
                self.agree(str(folder))
                yield folder
                self._dist.barrier()
        else:
            yield Path(self.agree(""))
            self._dist.barrier()
        self._dist.barrier()


class Shards(Replicas):
    """One of several workers that hold a piece of every parameter: FSDP2 around each decoder layer and the rest.

    Args:
        device: torch device type.
    """

    def __init__(self, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__()
        self.holder = self.rank
        self._mesh = init_device_mesh(device, (self.size,))

    def lay_out(self, model: Any) -> None:
        """Shard in place; gradients are summed, not averaged, because the loss is divided by the count of all workers.

        Raises:
            FitError: the model's decoder layers cannot be found.
        """
        from torch.distributed.fsdp import fully_shard

        layers = getattr(model.get_decoder(), "layers", None)
        if not layers:
            raise FitError(
                f"{type(model).__name__} has no get_decoder().layers to shard",
                where="resources.shard",
                fix="use shard: none",
            )
        for layer in layers:
            fully_shard(layer, mesh=self._mesh)
        fully_shard(model, mesh=self._mesh)
        for module in model.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo can only sum
        model.set_reduce_scatter_unused_params(True)

    def reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """The backward pass has done it."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Gather a sharded tensor on every worker."""
        found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return found

    def local(self, tensor: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the piece of a sharded tensor; other tensors are the worker's own."""
        from torch.distributed.tensor import DTensor

        if not isinstance(tensor, DTensor):
            return tensor, {}
        dims = [placement.dim if placement.is_shard() else None for placement in tensor.placements]  # type: ignore[attr-defined]
        layout = {"shape": list(tensor.shape), "stride": list(tensor.stride()), "shard_dims": dims}
        local: Tensor = cast(Any, tensor).detach().to_local()
        return local, layout

    def rebuild(self, piece: Tensor, layout: dict[str, Any]) -> Tensor:
        """Return the sharded tensor."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        if not layout:
            return piece
        placements = [Replicate() if dim is None else Shard(dim) for dim in layout["shard_dims"]]
        shape, stride = torch.Size(layout["shape"]), tuple(layout["stride"])
        device = piece.to(self._mesh.device_type)
        return DTensor.from_local(device, self._mesh, placements, run_check=False, shape=shape, stride=stride)

    def settle(self, model: Any) -> None:
        """Drop gathered weights: FSDP2 keeps those of the root until a backward pass."""
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()

    def gather(self, model: Any) -> None:
        """Replace worker 0's shards by whole parameters, one after the other; tied ones stay tied."""
        whole: dict[nn.Parameter, nn.Parameter] = {}
        for module in list(model.modules()):
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if parameter not in whole:
                    gathered = self.whole(parameter.detach())
                    whole[parameter] = parameter if self.rank else nn.Parameter(gathered.cpu(), parameter.requires_grad)
                setattr(module, name, whole[parameter])


def same_start(team: Solo, model: Any, examples: Sequence[tuple[list[int], list[bool]]]) -> None:
    """Refuse workers that begin with other weights or other data than worker 0, on whichever machine they are.

    Raises:
        ConfigError: names the worker.
    """
    if team.size == 1:
        return
    weights = [float(parameter.detach().double().sum()) for parameter in model.parameters()]
    mine = f"{len(examples)} {sum(sum(tokens) + sum(mask) for tokens, mask in examples)} {weights!r}"
    if team.agree(mine) != mine:
        raise ConfigError(
            f"worker {team.rank} loaded other weights or data than worker 0",
            where="resources.workers",
            fix="give every machine the same checkpoint and data files",
        )


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cut a list into runs of one dtype and at most BUCKET_BYTES, larger tensors alone."""
    bucket: list[Tensor] = []
    room = 0
    for gradient in gradients:
        if bucket and (gradient.nbytes > room or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        if not bucket:
            room = BUCKET_BYTES
        bucket.append(gradient)
        room -= gradient.nbytes
    if bucket:
        yield bucket
