"""Executor `local`: the workers of a stage as processes of this machine that meet on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from stackloom.core.errors import ConfigError, StackloomError
from stackloom.run.context import StageContext
from stackloom.run.workers import Inbox, Job, reporting, work

NOTICE_SECONDS = 2.0  # that the others get to end too, so that a killed worker is told from those who miss it


def launch(ctx: StageContext, address: str | None = None) -> int:
    """Run a stage on `resources.workers` processes; returns the largest resident size of one, in bytes.

    However it ends, no worker is left: they are killed with the driver, on Ctrl-C, and when one of them fails.

    Raises:
        StackloomError: the first error of a worker, of its type; names the worker.
        FitError: a worker was killed or ended before it was done; names it and the signal.
        ConfigError: an address was given.
    """
    import torch
    from torch.multiprocessing.spawn import start_processes

    if address is not None:
        raise ConfigError("executor local has no address", where="address", fix="use executor ray, or leave it out")
    size = ctx.plan.resources.workers
    pipes = [Pipe(duplex=False) for _ in range(size)]
    threads = max(1, torch.get_num_threads() // size)
    with tempfile.TemporaryDirectory(prefix="stackloom-") as meeting:
        outlets = tuple(writer for _, writer in pipes)
        arguments = (Job.of(ctx).model_dump_json(), size, threads, os.path.join(meeting, "store"), outlets)
        processes: list[Any] = []
        try:
            context = start_processes(  # type: ignore[no-untyped-call]
                _entry, arguments, nprocs=size, join=False, start_method="spawn"
            )
            assert context is not None
            processes = list(context.processes)
            for writer in outlets:
                writer.close()
            inbox = Inbox(ctx)
            _watch(processes, [reader for reader, _ in pipes], inbox)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for reader, _ in pipes:
                reader.close()
    return inbox.peak_bytes


def _entry(rank: int, job: str, size: int, threads: int, store: str, outlets: Sequence[Connection]) -> None:
    """Be a worker: meet the others through a file, over sockets of the loopback interface."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the driver's death and Ctrl-C end it also inside a collective
    for other, outlet in enumerate(outlets):
        if other != rank:
            outlet.close()  # so that the driver sees the end of a worker that dies in the middle of a message
    import torch
    import torch.distributed as dist

    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    torch.set_num_threads(threads)

    def send(text: str) -> None:
        outlets[rank].send_bytes(text.encode())

    try:
        with reporting(rank, send):
            found = Job.model_validate_json(job)
            cuda = found.plan.device.kind == "cuda"
            if cuda:
                torch.cuda.set_device(rank)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size)
            work(found, send)
            dist.destroy_process_group()
    except Exception:  # noqa: BLE001 - the driver has been told
        sys.exit(1)


def _watch(processes: Sequence[Any], readers: Sequence[Connection], inbox: Inbox) -> None:
    """Pass the workers' events on until all are done.

    Raises:
        StackloomError: one failed or is gone.
    """
    open_readers = list(readers)
    while len(inbox.done) < len(processes):
        running = [process.sentinel for rank, process in enumerate(processes) if rank not in inbox.done]
        ready = wait([*open_readers, *running])
        open_readers = [reader for reader in open_readers if reader not in ready or _take(reader, inbox)]
        if inbox.failures or any(sentinel in ready for sentinel in running):
            raise _cause(processes, open_readers, inbox)


def _take(reader: Connection, inbox: Inbox) -> bool:
    """Take one event; False at the end of the worker's."""
    try:
        text = reader.recv_bytes().decode()
    except (EOFError, OSError):
        return False
    inbox.take(text)
    return True


def _cause(processes: Sequence[Any], readers: Sequence[Connection], inbox: Inbox) -> StackloomError:
    """Return what stopped the first worker that stopped: one that died without a word, else the earliest error."""
    for process in processes:
        process.join(NOTICE_SECONDS / len(processes))
    for reader in readers:
        while reader.poll() and _take(reader, inbox):
            pass
    spoke = inbox.done | {rank for _, rank, _ in inbox.failures}
    for rank, process in enumerate(processes):
        if process.exitcode is None or rank in spoke:
            continue
        if process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            short = " (out of memory, if nobody sent it)" if name == "SIGKILL" else ""
            return inbox.lost(rank, f"was killed by {name}{short}")
        guard = 'a script that runs a plan on several workers needs `if __name__ == "__main__":` around it'
        return inbox.lost(rank, f"ended with exit code {process.exitcode} before it was done", guard)
    return inbox.first_failure()
