"""Executor `ray`: the workers of a stage as a Ray Train job, started again from the last checkpoint when one dies."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stackloom.core.errors import EngineError, FitError, StackloomError
from stackloom.run.context import StageContext
from stackloom.run.workers import Inbox, Job, reporting, work

RETRIES = 3  # of a stage whose workers died
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0  # for a cluster's port to answer
OBJECT_STORE_BYTES = 100 * 2**20  # only jobs and events pass through it


def launch(ctx: StageContext, address: str | None = None) -> int:
    """Run a stage on `resources.workers` Ray Train workers; returns the largest resident size of one, in bytes.

    Args:
        ctx: the stage; on several machines its folder lies on a file system that they share.
        address: of a cluster, as `ray.init` takes it; None takes RAY_ADDRESS, else starts one on this machine.

    Raises:
        StackloomError: an error that a worker raised on purpose, at once, since the next try would raise it again.
        FitError: workers died RETRIES times and once more, or the cluster has too few CPUs or GPUs.
    """
    with connected(address or os.environ.get("RAY_ADDRESS"), ctx.plan.resources.workers) as loopback:
        import ray
        from ray.util.queue import Queue

        events = Queue(actor_options={"num_cpus": 0})
        config = {"job": Job.of(ctx).model_dump_json(), "events": events}
        nodes = ray.nodes()
        inbox, share = Inbox(ctx), _share(nodes, ctx.plan.resources.workers)
        outcome = ray.remote(num_cpus=0, max_retries=0)(_train).remote(config, share, loopback)
        while not ray.wait([outcome], timeout=0)[0]:
            _drain(events, inbox)
        while not events.empty():
            _drain(events, inbox)
        shutil.rmtree(_storage(ctx.folder), ignore_errors=True)
        try:
            ray.get(outcome)
        except ray.exceptions.RayTaskError as error:
            raise _typed(error.cause, inbox) from error
    return inbox.peak_bytes


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[bool]:
    """Connect to a cluster, or start one that nobody else can reach; yields whether it is on loopback alone.

    Leaving the block ends the job's actors, whatever they do.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "ray" not in sys.modules:  # Ray reads these when it is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # 127.0.0.1 stays 127.0.0.1, on Linux as well
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if address is not None:
        _answers(address)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        try:
            if address is not None:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, workers),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=scratch,
                    **quiet,
                )
            yield address is None
        except (ConnectionError, RuntimeError) as cause:
            raise FitError(
                f"Ray cannot be used: {str(cause).splitlines()[0]}",
                where="executor",
                fix="check --address and RAY_AUTH_TOKEN; end another Ray session of this process with ray.shutdown()",
            ) from cause
        finally:
            ray.shutdown()


def _answers(address: str) -> None:
    """Ask whether something listens at HOST:PORT: `ray.init` itself tries for minutes, and then ends the process."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS).close()
    except OSError as cause:
        raise FitError(
            f"Ray cannot be used: nothing answers at {address} ({cause})",
            where="executor",
            fix="check --address and RAY_ADDRESS, and that `ray start --head` runs there",
        ) from cause


def _train(config: dict[str, Any], share: int, loopback: bool) -> None:
    """Run Ray Train inside the cluster, so that the driver's only thread hears the workers and Ctrl-C."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job = Job.model_validate_json(config["job"])
    cuda = job.plan.device.kind == "cuda"
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if loopback:
        from stackloom.run.ray_loopback import LoopbackConfig

        meeting: TorchConfig = LoopbackConfig(backend=backend, folder=str(_storage(job.folder)))
    else:
        meeting = TorchConfig(backend=backend)
    TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=meeting,
        scaling_config=ScalingConfig(
            num_workers=job.plan.resources.workers,
            use_gpu=cuda,
            resources_per_worker={"CPU": share} | ({"GPU": 1} if cuda else {}),
        ),
        run_config=RunConfig(
            name=secrets.token_hex(8),
            storage_path=str(_storage(job.folder)),
            failure_config=FailureConfig(max_failures=RETRIES),
        ),
    ).fit()


def _storage(folder: Path) -> Path:
    return folder / "ray"


def _share(nodes: list[dict[str, Any]], workers: int) -> int:
    """Return the most CPUs that each worker can have at once.

    Raises:
        FitError: the cluster has fewer CPUs than workers.
    """
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    for share in range(max(cpus, default=0), 0, -1):
        if sum(each // share for each in cpus) >= workers:
            return share
    raise FitError(
        f"the Ray cluster has {sum(cpus)} CPUs", where="resources.workers", fix="use fewer workers or a larger cluster"
    )


def _worker(config: dict[str, Any]) -> None:
    """Be a worker; Ray Train has made the process group."""
    import ray.train
    import torch

    events = config["events"]
    with reporting(ray.train.get_context().get_world_rank(), events.put):
        job = Job.model_validate_json(config["job"])
        if job.plan.device.kind == "cuda":
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())
        work(job, events.put)


def _drain(events: Any, inbox: Inbox) -> None:
    """Pass on what has arrived; an error that a worker raised on purpose ends the stage."""
    from ray.util.queue import Empty

    try:
        inbox.take(events.get(timeout=POLL_SECONDS))
    except Empty:
        return
    if inbox.failures and not isinstance(error := inbox.first_failure(), EngineError):
        raise error


def _typed(cause: BaseException, inbox: Inbox) -> StackloomError:
    """Return the error of a stage that Ray Train gave up: of a worker that died, else the earliest."""
    lost: dict[int, Exception] = getattr(cause, "worker_failures", {})
    spoke = {rank for _, rank, _ in inbox.failures}
    for rank, error in sorted(lost.items()):
        if rank not in spoke:
            return inbox.lost(rank, f"was lost: {str(error).strip().splitlines()[0]}")
    if inbox.failures:
        return inbox.first_failure()
    return FitError(
        f"Ray Train gave up: {str(cause).strip().splitlines()[-1]}",
        where="executor",
        fix=f"`stackloom resume {inbox.ctx.target.parent}` goes on from the last checkpoint",
    )
