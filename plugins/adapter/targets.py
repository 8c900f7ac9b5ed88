"""Which linear layers of a model an adapter's patterns name; torch-free, so that a plan can ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from stackloom.core.fit import Fit
from stackloom.core.shapes import ModelShape

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class PlannedLinear(NamedTuple):
    """A linear layer that a model of some shape has.

    Attributes:
        path: dotted module path, Llama-style.
        rows, columns: out and in features.
    """

    path: str
    rows: int
    columns: int


def named_by(path: str, pattern: str) -> bool:
    """Whether a pattern names a module: the whole path or its end, `*` and `?` as in a shell.

    Example:
        >>> named_by("model.layers.3.self_attn.q_proj", "self_attn.*_proj")
        True
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def planned_linears(shape: ModelShape) -> Iterator[PlannedLinear]:
    """Yield every `torch.nn.Linear` of a Llama-style model; routed experts are 3-D tensors and no linear layers."""
    for layer in range(shape.layers):
        for name, rows, columns in shape.linears():
            if not (shape.experts and name.startswith("mlp.")):
                yield PlannedLinear(f"model.layers.{layer}.{name}", rows, columns)
    if not shape.tied:
        yield PlannedLinear("lm_head", shape.vocab, shape.hidden)


def planned_targets(shape: ModelShape, patterns: Iterable[str]) -> list[PlannedLinear]:
    """Return the linear layers that the patterns name, in the model's order."""
    patterns = tuple(patterns)
    return [linear for linear in planned_linears(shape) if any(named_by(linear.path, pattern) for pattern in patterns)]


def target_fits(shape: ModelShape, patterns: Iterable[str], rank: int) -> list[Fit]:
    """Say whether every pattern names a linear layer that can take a rank-`rank` adapter."""
    answers = []
    ends = sorted({linear.path.rpartition(".")[2] for linear in planned_linears(shape)})
    for pattern in patterns:
        if named_by("model.embed_tokens", pattern):
            answers.append(Fit.no(f"target {pattern!r} names the embedding; adapters go around linear layers"))
        elif shape.tied and named_by("lm_head", pattern):
            answers.append(Fit.no(f"target {pattern!r} names lm_head, which shares the embedding's weight"))
        elif not planned_targets(shape, [pattern]):
            answers.append(Fit.no(f"target {pattern!r} names no linear layer; there are {', '.join(ends)}"))
    small = min((min(linear.rows, linear.columns) for linear in planned_targets(shape, patterns)), default=rank)
    if rank > small:
        answers.append(Fit.warn(f"rank {rank} exceeds the smallest side {small} of a target: some of it is idle"))
    return answers or [Fit.yes()]


def target_nodes(shape: ModelShape, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the targets as touch nodes, `*` for the layer's number where all layers have the target."""
    layers: dict[str, list[str]] = {}
    nodes = []
    for linear in planned_targets(shape, patterns):
        if linear.path.startswith("model.layers."):
            number, _, name = linear.path.removeprefix("model.layers.").partition(".")
            layers.setdefault(name, []).append(number)
        else:
            nodes.append(linear.path)
    for name, numbers in layers.items():
        which = "*" if len(numbers) == shape.layers else f"[{'|'.join(numbers)}]"
        nodes.append(f"model.layers.{which}.{name}")
    return tuple(sorted(nodes))
