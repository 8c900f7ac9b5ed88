"""Finds the pairs of linear maps with a free scale: multiply one by s, divide the other by s, and nothing changes.

Known architectures alone; names prove nothing. Shape legend: H query heads, G key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.plugins.adapter.low_rank import LowRankLinear, wrapped
from stackloom.plugins.transform.wisca.config import WiscaConfig

ID = "transform.wisca"
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm", "qk_norm")


@dataclass(frozen=True)
class Attention:
    """What is known of an attention class of transformers.

    Attributes:
        rope: which channels rotate into each other: c and c + D/2 ("half"), 2c and 2c + 1 ("interleaved"), or none.
        output: name of the output projection.
        fused: name of one projection that holds query, key and value rows one above the other; "" for three.
    """

    rope: Literal["half", "interleaved", "none"] = "half"
    output: str = "o_proj"
    fused: str = ""


ATTENTION = {
    **dict.fromkeys(
        (
            "LlamaAttention",
            "MistralAttention",
            "MixtralAttention",
            "Qwen2Attention",
            "Qwen2MoeAttention",
            "Qwen3Attention",
            "Qwen3MoeAttention",
            "Olmo2Attention",
            "GemmaAttention",
            "Gemma2Attention",
            "GraniteAttention",
            "SmolLM3Attention",
            "StableLmAttention",
        ),
        Attention(),
    ),
    "CohereAttention": Attention(rope="interleaved"),
    "OPTAttention": Attention(rope="none", output="out_proj"),
    "Phi3Attention": Attention(fused="qkv_proj"),
}
GATED = (
    "LlamaMLP",
    "MistralMLP",
    "Qwen2MLP",
    "Qwen3MLP",
    "GemmaMLP",
    "Gemma2MLP",
    "GraniteMLP",
    "CohereMLP",
    "SmolLM3MLP",
)


@dataclass(frozen=True)
class Member:
    """A parameter, or some of its rows or columns, on one side of a pair.

    Attributes:
        name, parameter: as in the model; perhaps sharded.
        dim: the dimension along which factors differ.
        units: int64 (N,), the unit of each index along `dim`; -1 where an index is of another pair.
        up: multiplied by the factor, else divided.
        normed: whether it counts in the norm.
    """

    name: str
    parameter: nn.Parameter
    dim: int
    units: Tensor
    up: bool
    normed: bool = True


@dataclass(frozen=True)
class Pair:
    """Two sides with one free factor per unit.

    Attributes:
        name: of the place, for people.
        sides: names of the side that is multiplied and the one that is divided.
        units: how many factors there are.
        members: of both sides, biases included.
        dtype: in which they are multiplied with inputs; an adapter's matrices may be held in a wider one.
    """

    name: str
    sides: tuple[str, str]
    units: int
    members: tuple[Member, ...]
    dtype: torch.dtype


def find_pairs(model: nn.Module, config: WiscaConfig) -> list[Pair]:
    """Return the pairs that the options ask for, in the model's order; nothing is changed.

    Raises:
        FitError: an attention or MLP of an unknown class, normalised queries and keys, weights that are quantized,
            frozen, shared with another module or under an adapter, or a matrix pair with no free scale.
    """
    found = [*_in_layers(model, config), *_in_adapters(model, config)]
    if not found:
        raise FitError(f"{type(model).__name__} has no pair to balance", where=ID, fix="change qk, vo, up_down or lora")
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for member in (member for pair in found for member in pair.members):
        _check(member, owners, config)
    return found


def _in_layers(model: nn.Module, config: WiscaConfig) -> Iterator[Pair]:
    for path, module in model.named_modules():
        kind, end = type(module).__name__, path.rpartition(".")[2]
        known = type(module).__module__.startswith("transformers.models.")
        if (config.qk, config.vo) != ("off", "off") and (end in ATTENTION_NAMES or kind.endswith("Attention")):
            if not known or kind not in ATTENTION:
                raise FitError(
                    f"{path} is a {kind}, whose free scales are not known",
                    where=ID,
                    fix=f"known: {', '.join(ATTENTION)}; or set qk and vo: off",
                )
            yield from _of_attention(path, module, ATTENTION[kind], config)
        if config.up_down != "off" and end == "mlp":
            if not known or kind not in GATED:
                raise FitError(
                    f"{path} is a {kind}, and up has a free scale in gated MLPs alone: {', '.join(GATED)}",
                    where=ID,
                    fix="set up_down: off",
                )
            up, down = (_linear(f"{path}.{name}", getattr(module, name)) for name in ("up_proj", "down_proj"))
            unit_N = torch.arange(up.out_features)
            members = [*_rows(f"{path}.up_proj", up, unit_N, config), *_columns(f"{path}.down_proj", down, unit_N)]
            yield _pair(path, ("up", "down"), members, config.up_down == "tensor")


def _of_attention(path: str, module: Any, kind: Attention, config: WiscaConfig) -> Iterator[Pair]:
    width = int(module.head_dim)
    output = _linear(f"{path}.{kind.output}", getattr(module, kind.output))
    heads = output.in_features // width
    if kind.fused:
        fused = _linear(f"{path}.{kind.fused}", getattr(module, kind.fused))
        _refuse_tensor_parallel(f"{path}.{kind.fused}", fused)
        groups = (fused.out_features // width - heads) // 2
        parts = {"q": (0, heads), "k": (heads, groups), "v": (heads + groups, groups)}
    else:
        groups = _linear(f"{path}.k_proj", module.k_proj).out_features // width

    def rows(which: str, unit_N: Tensor) -> list[Member]:
        if not kind.fused:
            name = f"{path}.{which}_proj"
            return _rows(name, _linear(name, getattr(module, f"{which}_proj")), unit_N, config, up=which != "k")
        first, count = parts[which]
        whole_N = torch.full((fused.out_features,), -1)
        whole_N[first * width : (first + count) * width] = unit_N
        return _rows(f"{path}.{kind.fused}", fused, whole_N, config, up=which != "k")

    head_of_HD = torch.arange(heads).repeat_interleave(width) // (heads // groups)  # the kv head that a channel meets
    head_of_GD = torch.arange(groups).repeat_interleave(width)
    if config.qk != "off":
        if normed := [name for name in NORMS if isinstance(getattr(module, name, None), nn.Module)]:
            raise FitError(
                f"{path}.{normed[0]} normalises queries or keys behind their projections: their scale is not free",
                where=ID,
                fix="set qk: off",
            )
        tied_D = rotating_together(width, _rotary_width(module, width), kind.rope)
        units_HD, units_GD = head_of_HD, head_of_GD
        if config.qk == "channel":
            units_HD = head_of_HD * width + tied_D.repeat(heads)
            units_GD = head_of_GD * width + tied_D.repeat(groups)
        yield _pair(path, ("q", "k"), [*rows("q", units_HD), *rows("k", units_GD)], config.qk == "tensor")
    if config.vo != "off":
        units_HD, units_GD = head_of_HD, head_of_GD
        if config.vo == "channel":
            units_HD = head_of_HD * width + torch.arange(width).repeat(heads)
            units_GD = head_of_GD * width + torch.arange(width).repeat(groups)
        members = [*rows("v", units_GD), *_columns(f"{path}.{kind.output}", output, units_HD)]
        yield _pair(path, ("v", "o"), members, config.vo == "tensor")


def rotating_together(width: int, rotary: int, rope: str) -> Tensor:
    """Return int64 (D,): channels of one number rotate into each other, and only they may share a factor.

    Example:
        >>> rotating_together(6, 4, "half").tolist()
        [0, 1, 0, 1, 4, 5]
    """
    unit_D = torch.arange(width)
    if rope == "half":
        unit_D[rotary // 2 : rotary] = torch.arange(rotary // 2)
    elif rope == "interleaved":
        unit_D[:rotary] = unit_D[:rotary] // 2 * 2
    return unit_D


def _rotary_width(module: Any, width: int) -> int:
    parameters = getattr(module.config, "rope_parameters", None) or {}
    share = getattr(module.config, "partial_rotary_factor", None) or parameters.get("partial_rotary_factor") or 1.0
    return int(width * share)


def _in_adapters(model: nn.Module, config: WiscaConfig) -> Iterator[Pair]:
    if config.lora == "off":
        return
    layers = wrapped(model)
    if not layers:
        raise FitError("no layer has a low-rank adapter", where=ID, fix="set lora: off, or give the stage an adapter")
    for path, layer in layers.items():
        if not homogeneous(layer.between, layer.rank, layer.lora_A.weight.device):
            raise FitError(
                f"what {path} does between A and B is not homogeneous, so that their scale is not free",
                where=ID,
                fix="set lora: off, or take an activation with f(2x) = 2 f(x), as ReLU",
            )
        unit_R = torch.arange(layer.rank)
        members = [
            Member(f"{path}.lora_A.weight", layer.lora_A.weight, 0, unit_R, True),
            Member(f"{path}.lora_B.weight", layer.lora_B.weight, 1, unit_R, False),
        ]
        yield _pair(path, ("A", "B"), members, config.lora == "tensor", layer.weight.dtype)


@torch.no_grad()
def homogeneous(between: Callable[[Tensor], Tensor], rank: int, device: Any = None) -> bool:
    """Whether f(2x) = 2 f(x) and f(x/2) = f(x)/2 on a few draws, bit for bit, as powers of two allow."""
    x = torch.randn(16, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    middle = between(x)
    return bool(torch.equal(between(2 * x), 2 * middle) and torch.equal(between(x / 2), middle / 2))


def _pair(
    path: str, sides: tuple[str, str], members: list[Member], one: bool, dtype: torch.dtype | None = None
) -> Pair:
    """Number the units from 0 without gaps; `one` gives all the same. Weights compute in their own dtype."""
    used = torch.cat([member.units[member.units >= 0] for member in members]).unique()
    place = torch.full((int(used.max()) + 2,), -1)  # the last one is for -1
    place[used] = 0 if one else torch.arange(len(used))
    numbered = tuple(replace(member, units=place[member.units]) for member in members)
    own = members[0].parameter.dtype
    return Pair(f"{path} {sides[0]}/{sides[1]}", sides, 1 if one else len(used), numbered, dtype or own)


def _linear(path: str, module: nn.Module) -> nn.Linear:
    if isinstance(module, LowRankLinear):
        raise FitError(
            f"{path} is under an adapter: its own weight is frozen, and only the adapter would be saved",
            where=ID,
            fix="set qk, vo and up_down: off and lora: tensor, or balance in a transform stage before",
        )
    if type(module) is not nn.Linear or module.weight.dtype not in FLOATS:
        what = module.weight.dtype if type(module) is nn.Linear else f"a {type(module).__name__}"
        raise FitError(f"{path} is {what}, not a float linear layer", where=ID, fix="balance before quantizing")
    return module


def _rows(name: str, linear: nn.Linear, unit_N: Tensor, config: WiscaConfig, *, up: bool = True) -> list[Member]:
    found = [Member(f"{name}.weight", linear.weight, 0, unit_N, up)]
    if linear.bias is not None:
        found.append(Member(f"{name}.bias", linear.bias, 0, unit_N, up, config.norm_with_bias))
    return found


def _columns(name: str, linear: nn.Linear, unit_N: Tensor) -> list[Member]:
    """A bias of the divided side is added after it, and stays."""
    return [Member(f"{name}.weight", linear.weight, 1, unit_N, False)]


def _check(member: Member, owners: dict[int, list[str]], config: WiscaConfig) -> None:
    if others := [name for name in owners.get(id(member.parameter), ()) if name != member.name]:
        raise FitError(f"{member.name} is also {others[0]}: rewriting one changes both", where=ID)
    if not member.parameter.requires_grad and not config.allow_frozen and config.control == "off":
        raise FitError(
            f"{member.name} is frozen, and rewriting changes it", where=ID, fix="set allow_frozen: true if it is meant"
        )


def _refuse_tensor_parallel(name: str, fused: nn.Linear) -> None:
    mesh = getattr(fused.weight, "device_mesh", None)
    if mesh is not None and "tp" in (mesh.mesh_dim_names or ()):
        raise FitError(
            f"{name} holds query, key and value and is sharded over a mesh named tp: which rows are whose is not known",
            where=ID,
            fix="balance before the model is laid out",
        )
