"""Which linear layers a quantizer's patterns select, and what they weigh; torch-free, so that a plan can ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd

from stackloom.core.shapes import ModelShape

KEPT = ("*lm_head*", "*embed*", "*router*", "*.mlp.gate")
SCALE_BYTES = 4  # scales are float32
SMALLEST_SUGGESTED_GROUP = 8


@dataclass(frozen=True)
class PlannedLinear:
    """A linear layer that a model of some shape has.

    Attributes:
        path: dotted module path, Llama-style.
        rows, columns: out and in features.
        bias: whether it has one.
    """

    path: str
    rows: int
    columns: int
    bias: bool = False

    def float_bytes(self, element_bytes: float) -> float:
        """Bytes of weight and bias before quantization."""
        return (self.rows * self.columns + self.rows * self.bias) * element_bytes

    def quantized_bytes(self, bits: int, group: int, element_bytes: float) -> float:
        """Bytes of packed weights, float32 scales and the bias, which stays as it is."""
        packed = self.rows * (self.columns if bits == 8 else -(-self.columns // 2))
        return packed + SCALE_BYTES * self.rows * (self.columns // group) + self.rows * self.bias * element_bytes


def selects(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a module path matches a pattern of `include` and none of `exclude`; `*` and `?` as in a shell.

    Example:
        >>> selects("model.layers.0.mlp.up_proj", ("*mlp*",), KEPT), selects("lm_head", ("*",), KEPT)
        (True, False)
    """
    return any(fnmatchcase(path, pattern) for pattern in include) and not any(
        fnmatchcase(path, pattern) for pattern in exclude
    )


def planned_linears(shape: ModelShape, include: Sequence[str], exclude: Sequence[str]) -> list[PlannedLinear]:
    """Return the selected `torch.nn.Linear` layers of a Llama-style model; routed experts are 3-D tensors and none."""
    return [linear for linear in _linears(shape) if selects(linear.path, include, exclude)]


def _linears(shape: ModelShape) -> Iterator[PlannedLinear]:
    for layer in range(shape.layers):
        for name, rows, columns in shape.linears():
            mlp = name.startswith("mlp.")
            if not (shape.experts and mlp):
                bias = shape.mlp_bias if mlp else shape.attention_bias and not name.endswith("o_proj")
                yield PlannedLinear(f"model.layers.{layer}.{name}", rows, columns, bias)
    if not shape.tied:
        yield PlannedLinear("lm_head", shape.vocab, shape.hidden)


def legal_groups(columns: Sequence[int]) -> list[int]:
    """Return the group sizes, from 8 up, that divide every width.

    Example:
        >>> legal_groups([576, 1536])
        [8, 12, 16, 24, 32, 48, 64, 96, 192]
    """
    common = gcd(*columns)
    return [size for size in range(SMALLEST_SUGGESTED_GROUP, common + 1) if common % size == 0]


def nodes_of(linears: Sequence[PlannedLinear], layers: int) -> tuple[str, ...]:
    """Return the layers as touch nodes, `*` for the layer's number where all layers are selected."""
    numbers: dict[str, list[str]] = {}
    nodes = []
    for linear in linears:
        if linear.path.startswith("model.layers."):
            number, _, name = linear.path.removeprefix("model.layers.").partition(".")
            numbers.setdefault(name, []).append(number)
        else:
            nodes.append(linear.path)
    for name, found in numbers.items():
        nodes.append(f"model.layers.{'*' if len(found) == layers else '[' + '|'.join(found) + ']'}.{name}")
    return tuple(sorted(nodes))
