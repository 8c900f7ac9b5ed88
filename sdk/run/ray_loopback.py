"""Ray Train's torch workers on one machine, meeting through a file: torch's own store listens on every interface."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig


@dataclass
class LoopbackConfig(TorchConfig):  # type: ignore[misc]  # Ray has no types for mypy here
    """A process group whose sockets are on the loopback interface.

    Args:
        folder: on this machine; holds one file per start of the workers.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type:
        """The class that starts and ends the group."""
        return LoopbackBackend


class LoopbackBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Starts the group; Ray's own class ends it."""

    def on_start(self, worker_group: Any, backend_config: LoopbackConfig) -> None:
        """Have every worker meet the others; Ray calls this again, on new workers, after one has died."""
        store = Path(backend_config.folder) / f"workers-{secrets.token_hex(8)}"
        store.parent.mkdir(parents=True, exist_ok=True)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, meet, backend_config.backend, str(store), rank, size, backend_config.timeout_s
                )
                for rank in range(size)
            ]
        )


def meet(backend: str, store: str, rank: int, size: int, seconds: int) -> None:
    """Join the group as one of its workers."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    patience = timedelta(seconds=seconds)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size, timeout=patience)
