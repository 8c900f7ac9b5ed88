"""Times the ops against their baselines and reports the error beside the speed.

``python -m stackloom.kernels.bench [OP ...] [--device cpu|cuda] [--json] [--quick]``

A ratio is baseline time / our time: same machine, same inputs, same output, one process, the two called alternately,
the median of at least 30 samples; ``spread`` is what the same method says of the baseline against itself. On CUDA the
Triton implementation is timed, on a CPU the reference: an interpreted kernel is never timed. An op whose contract is
red gets no number.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import torch

from .contract import Benchmark, Op
from .discovery import load_op, op_names
from .selection import KernelError, disagreement, outputs_of

COLUMNS = ("name", "case", "ratio", "bar", "met", "floor_fraction", "error", "device")
SAMPLES = 31
ROTATION_BYTES = {"cuda": 160_000_000, "cpu": 64_000_000}  # more than a cache holds: 50 MB of L2 on an H100
CYCLES_PER_SECOND = 2e9  # of a device's clock, at most: what the head start is counted in
MOST_CALLS = {"cpu": 1000, "cuda": 32}  # in a sample; a device's queue is about 1,000 launches long
SAMPLE_SECONDS = 2e-3  # shorter calls are repeated within a sample until it lasts this long


class ContractRed(KernelError):
    """An op breaks its contract, so its speed says nothing."""


def run(ops: Iterable[str] | None = None, device: str | None = None, quick: bool = False) -> list[dict[str, Any]]:
    """Benchmark ops by name.

    Args:
        ops: names; None for all.
        device: ``"cpu"`` or ``"cuda"``; None takes CUDA where there is a device.
        quick: only the cases that are marked quick.

    Returns:
        One row per case: the keys of ``COLUMNS`` first and in that order, then how it was measured. ``bar`` and ``met``
        are None where the project sets no bar; ``error`` is the relative RMS error against float64 (for integers the
        share of wrong elements).

    Raises:
        KeyError: no op has that name.
        ValueError: the device does not exist here, or ``TRITON_INTERPRET`` is set and would time the interpreter.
        ContractRed: an op's contract is red on this device; nothing is reported.
    """
    target = _device(device)
    loaded = [load_op(name) for name in (op_names() if ops is None else ops)]
    implementation = "triton" if target.type == "cuda" else "reference"
    for op in loaded:
        _insist_on_contract(op, target, implementation)
    bandwidth = copy_bandwidth(target)
    return [
        _row(op, benchmark, target, implementation, bandwidth)
        for op in loaded
        for benchmark in op.contract.benchmarks
        if benchmark.device in ("any", target.type) and (benchmark.quick or not quick)
    ]


def _device(name: str | None) -> torch.device:
    available = torch.cuda.is_available()
    target = torch.device(name or ("cuda" if available else "cpu"))
    if target.type not in ROTATION_BYTES:
        raise ValueError(f"ops are timed on cpu or cuda, not on {target}")
    if target.type == "cuda" and not available:
        raise ValueError("torch sees no CUDA device here")
    if target.type == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("unset TRITON_INTERPRET: the interpreter is never timed")
    return target


def _insist_on_contract(op: Op, device: torch.device, implementation: str) -> None:
    from .tooling.laws import quick_failures

    failures = list(quick_failures(op, device, implementation))
    if failures:
        raise ContractRed(f"{op.name} is red on {device}, no number is printed:\n  " + "\n  ".join(failures))


def _row(op: Op, benchmark: Benchmark, device: torch.device, implementation: str, bandwidth: float) -> dict[str, Any]:
    inputs = _rotation(benchmark, device)

    def ours(*args: Any) -> Any:
        return benchmark.ours(implementation, *args)

    timing = _compare(ours, benchmark.baseline, inputs, device)
    ratio = timing.baseline_seconds / timing.seconds
    floor = benchmark.traffic(*inputs[0]) / bandwidth
    truths = outputs_of(benchmark.truth(*inputs[0]))
    theirs = outputs_of(benchmark.baseline(*inputs[0]))
    comparable = [each.shape for each in theirs] == [truth.shape for truth in truths]  # a copy of as many bytes is not
    return {
        "name": op.name,
        "case": benchmark.name,
        "ratio": round(ratio, 4),
        "bar": benchmark.bar,
        "met": None if benchmark.bar is None else ratio >= benchmark.bar,
        "floor_fraction": round(floor / timing.seconds, 4),
        "error": _error(outputs_of(ours(*inputs[0])), truths),
        "device": _device_name(device),
        "baseline_error": _error(theirs, truths) if comparable else None,
        "implementation": implementation,
        "baseline": benchmark.baseline_name,
        "median_us": round(timing.seconds * 1e6, 2),
        "baseline_median_us": round(timing.baseline_seconds * 1e6, 2),
        "launch_us": round(timing.launch * 1e6, 2) if device.type == "cuda" else None,
        "baseline_launch_us": round(timing.baseline_launch * 1e6, 2) if device.type == "cuda" else None,
        "spread": round(timing.spread, 4),
        "samples": SAMPLES,
        "rotation": len(inputs),
        "copy_gb_per_s": round(bandwidth / 1e9, 2),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": _versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class Timing(NamedTuple):
    """Median seconds per call, and on CUDA the seconds of Python that launch one.

    ``spread`` is the distance of one baseline median from another, relative to that one.
    """

    seconds: float
    baseline_seconds: float
    spread: float
    launch: float
    baseline_launch: float


def _compare(
    ours: Callable[..., Any], baseline: Callable[..., Any], inputs: list[tuple[Any, ...]], device: torch.device
) -> Timing:
    """Sample baseline, ours and the baseline again in turn."""
    turns = (baseline, ours, baseline)
    supply = cycle(inputs)
    for function in turns:  # compile, autotune, allocate
        function(*next(supply))
    launches = [_launch_seconds(function, supply, device) for function in turns]
    repeats = [_repeats(function, supply, device, launch) for function, launch in zip(turns, launches, strict=True)]
    samples: list[list[float]] = [[], [], []]
    for _ in range(SAMPLES):
        for function, count, launch, series in zip(turns, repeats, launches, samples, strict=True):
            series.append(_sample(function, supply, count, device, launch))
    first, our_median, second = map(statistics.median, samples)
    both = statistics.median(samples[0] + samples[2])
    return Timing(our_median, both, abs(first - second) / second, launches[1], launches[0])


def _launch_seconds(function: Callable[..., Any], supply: Iterator[tuple[Any, ...]], device: torch.device) -> float:
    """What a call keeps Python busy for on CUDA: the median of five."""
    if device.type == "cpu":
        return 0.0
    seconds = []
    for args in (next(supply) for _ in range(5)):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        function(*args)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _repeats(
    function: Callable[..., Any], supply: Iterator[tuple[Any, ...]], device: torch.device, launch: float
) -> int:
    once = min(_sample(function, supply, 1, device, launch) for _ in range(3))
    return max(1, min(MOST_CALLS[device.type], round(SAMPLE_SECONDS / once)))


def _sample(
    function: Callable[..., Any],
    supply: Iterator[tuple[Any, ...]],
    count: int,
    device: torch.device,
    launch: float = 0.0,
) -> float:
    """Seconds per call over ``count`` calls, each on the next inputs of the rotation.

    On CUDA the device first waits for twice as long as Python needs to launch them, so that the calls queue up and what
    is timed is the device, not Python.
    """
    batches = [next(supply) for _ in range(count)]
    if device.type == "cpu":
        start = time.perf_counter()
        for args in batches:
            function(*args)
        return (time.perf_counter() - start) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    torch.cuda._sleep(round(2 * launch * count * CYCLES_PER_SECOND))
    begin.record()
    for args in batches:
        function(*args)
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) * 1e-3 / count


def _rotation(benchmark: Benchmark, device: torch.device) -> list[tuple[Any, ...]]:
    """Enough random inputs that no cache answers for memory."""
    torch.manual_seed(0)
    inputs = [benchmark.make(device)]
    size = sum(arg.nbytes for arg in inputs[0] if isinstance(arg, torch.Tensor))
    inputs += [benchmark.make(device) for _ in range(ROTATION_BYTES[device.type] // size)]
    return inputs


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read plus written, of the best of several plain copies of a buffer larger than any cache."""
    source = torch.rand(ROTATION_BYTES[device.type] * 2 // 4, device=device)
    target = torch.empty_like(source)
    supply = cycle([(source,)])
    best = min(_sample(target.copy_, supply, 1, device) for _ in range(SAMPLES))
    return 2 * source.nbytes / best


def _error(outputs: tuple[torch.Tensor, ...], truths: tuple[torch.Tensor, ...]) -> float:
    """The largest error among the outputs, against float64."""
    return max(disagreement(output, truth) for output, truth in zip(outputs, truths, strict=True))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def _versions() -> dict[str, str | None]:
    triton = sys.modules.get("triton")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "cuda": torch.version.cuda,
    }


def _as_text(rows: list[dict[str, Any]]) -> str:
    shown = (*COLUMNS, "median_us", "spread", "baseline")
    cells = [shown, *([_cell(row[column]) for column in shown] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(shown))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    """Benchmark the ops; 0 when no bar was missed, 1 when one was or a contract is red, 2 on bad usage."""
    parser = argparse.ArgumentParser(prog="python -m stackloom.kernels.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("op", nargs="*", help="names of ops (default: all)")
    parser.add_argument("--device", choices=sorted(ROTATION_BYTES), help="default: cuda where there is a device")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, with how they were measured")
    parser.add_argument("--quick", action="store_true", help="only the cases that are marked quick")
    options = parser.parse_args(argv)
    try:
        rows = run(options.op or None, options.device, options.quick)
    except ContractRed as red:
        print(red, file=sys.stderr)
        return 1
    except (KeyError, ValueError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    print(json.dumps(rows, indent=1) if options.json else _as_text(rows))
    if not options.json and any(row["bar"] is None for row in rows):
        print("bar -: the project sets no bar for this case")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
