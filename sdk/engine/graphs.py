"""Decode steps as CUDA graphs: one launch for a step instead of some hundred, one graph per shape.

A step is a function of tensors. Its first call at a shape captures it on static tensors; later ones copy their
arguments there and replay. What a graph has captured of weights and pages is their addresses: whoever exchanges those
makes new graphs, as the engine does when weights are read anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Step: TypeAlias = Callable[..., Tensor]
Replay: TypeAlias = Callable[[], None]
Capture: TypeAlias = Callable[[Step, Sequence[Tensor]], tuple[Replay, Tensor]]
WARM_UP = 3  # calls before a capture, in which kernels are compiled and libraries set up
FEWEST_PAGES = 8  # of a captured table; below it a shape more costs more than empty columns


class StepGraphs:
    """Calls one step through graphs. It does not hold the step, whose owner holds these graphs.

    Args:
        capture: makes a graph of a step on static arguments.

    Example:
        >>> graphs = StepGraphs()  # on a GPU
        >>> graphs(lambda x: 2 * x, torch.ones(4, device="cuda"))
        tensor([2., 2., 2., 2.], device='cuda:0')
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or GpuCapture()
        self._graphs: dict[tuple[Any, ...], tuple[tuple[Tensor, ...], Replay, Tensor]] = {}

    def shape(self, rows: int, pages: int, most_rows: int) -> tuple[int, int]:
        """Return the shape at which a step is captured: the next powers of two, at most so many rows."""
        return min(_power_of_two(rows), most_rows), max(FEWEST_PAGES, _power_of_two(pages))

    def __call__(self, step: Step, *arguments: Tensor) -> Tensor:
        """Return the step's result, in memory that the next call overwrites.

        Args:
            step: from tensors to one tensor, the same at every call; reads no other tensors than its arguments and ones
                that stay where they are, and never waits for the device.
            arguments: of the step.
        """
        key = tuple((tuple(each.shape), each.dtype) for each in arguments)
        if key not in self._graphs:
            static = tuple(each.clone() for each in arguments)
            self._graphs[key] = (static, *self._capture(step, static))
        static, replay, result = self._graphs[key]
        for place, each in zip(static, arguments, strict=True):
            place.copy_(each)
        replay()
        return result

    @property
    def shapes(self) -> int:
        """How many shapes have been captured."""
        return len(self._graphs)


class GpuCapture:
    """Captures steps on a stream of their own. Its graphs share memory: one step's result is gone after the next."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Step, static: Sequence[Tensor]) -> tuple[Replay, Tensor]:
        """Capture a step, and return its replay and where the result will lie."""
        make: Any = torch.cuda.Stream
        stream = make()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = step(*static)
        self._pool = graph.pool()
        return graph.replay, result


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
