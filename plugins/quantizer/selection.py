"""Which linear layers a quantizer's patterns select, and what they weigh; torch-free, so that a plan can ask."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd

from stackloom.core.shapes import ModelShape

KEPT = ("*lm_head*", "*embed*", "*router*", "*.mlp.gate")
SCALE_BYTES = 4  # scales are float32
SMALLEST_SUGGESTED_GROUP = 8
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
# Kind, producer and readers of the tensors of a Llama-style layer out of which a scale per channel can be moved.
FOLDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("norm", "input_layernorm", _QKV),
    ("norm", "post_attention_layernorm", _GATE_UP),
    ("value", "self_attn.v_proj", ("self_attn.o_proj",)),
    ("up", "mlp.up_proj", ("mlp.down_proj",)),
)


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


def planned_folds(shape: ModelShape, selected: AbstractSet[str], kinds: Collection[str]) -> list[str]:
    """Return the paths that moving scales out of the selected layers' inputs rewrites, in a Llama-style model.

    Args:
        shape: of the model.
        selected: paths of the layers that are quantized.
        kinds: of `FOLDS`, where scales may go: "norm", "up" (into up_proj, from down_proj), "value" (into v_proj).
    """
    found: dict[str, None] = {}
    for layer in range(shape.layers):
        for kind, producer, readers in FOLDS:
            paths = [f"model.layers.{layer}.{name}" for name in (producer, *readers)]
            if kind in kinds and not selected.isdisjoint(paths[1:]):
                found |= dict.fromkeys(paths)
    return list(found)


def nodes_of(linears: Sequence[PlannedLinear], layers: int) -> tuple[str, ...]:
    """Return the layers as touch nodes, `*` for the layer's number where all layers are selected."""
    return path_nodes([linear.path for linear in linears], layers)


def path_nodes(paths: Sequence[str], layers: int) -> tuple[str, ...]:
    """Return module paths as touch nodes, `*` for the layer's number where all layers are named."""
    numbers: dict[str, list[str]] = {}
    nodes = []
    for path in paths:
        if path.startswith("model.layers."):
            number, _, name = path.removeprefix("model.layers.").partition(".")
            numbers.setdefault(name, []).append(number)
        else:
            nodes.append(path)
    for name, found in numbers.items():
        nodes.append(f"model.layers.{'*' if len(found) == layers else '[' + '|'.join(found) + ']'}.{name}")
    return tuple(sorted(nodes))
