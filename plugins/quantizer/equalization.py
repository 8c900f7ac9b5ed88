"""Moving a scale per channel out of linear layers' inputs, without changing what the model computes.

`x W' = (x / s) (W s)'`: the columns of every weight that reads x are multiplied by s, and what produced x is divided by
it: a norm's weight, the rows of up_proj (the product with the gate is linear in it), or the rows of v_proj (attention
is linear in it; query heads that share a key/value head share its scales).

Shape legend: K channels of a tensor, D of them in a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_QKV, _VALUE, _UP = ("q_proj", "k_proj", "v_proj"), ("v_proj", "o_proj"), ("up_proj", "down_proj")
_READS_NORM = re.compile(r"(gate|up|router)[^.]*(\.weight)?$")  # of an MLP's parameters: experts and router too


@dataclass(frozen=True)
class Site:
    """One tensor of the model that linear layers read.

    Attributes:
        layers: paths of the layers to quantize that read it.
        kind: what produces it: "norm", "up", "value", or "" where nothing can absorb a scale.
        producer: path of that module.
        readers: names of all parameters with a column for each of its channels, the layers' weights among them.
        repeats, head_dim: of a value: query heads per key/value head, and D.
    """

    layers: tuple[str, ...]
    kind: str = ""
    producer: str = ""
    readers: tuple[str, ...] = ()
    repeats: int = 1
    head_dim: int = 1

    def tied(self, scale_K: Tensor) -> Tensor:
        """Return scales of which all copies of a producer's channel have the largest."""
        if self.repeats == 1:
            return scale_K
        heads = scale_K.reshape(-1, self.repeats, self.head_dim)
        return heads.amax(1, keepdim=True).expand_as(heads).reshape(-1)


def find_sites(model: nn.Module, linears: Mapping[str, nn.Linear]) -> list[Site]:
    """Return the tensors that the layers read, in the model's order, each layer in exactly one site.

    A norm's site is found by Llama's names; a layer of other surroundings gets a site of its own without a producer.
    Names prove nothing: `provable` tries.
    """
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    homes = {path.rpartition(".")[0] for path in linears}
    found: list[Site] = []
    for home in dict.fromkeys(path.rpartition(".")[0] for path in modules):
        names = {path.rpartition(".")[2] for path in modules if path.rpartition(".")[0] == home}
        if {"input_layernorm", "self_attn"} <= names:
            readers = [f"{home}.self_attn.{name}.weight" for name in _QKV]
            found.append(_norm_site(f"{home}.input_layernorm", readers, linears))
        if {"post_attention_layernorm", "mlp"} <= names:
            readers = [
                name
                for name, tensor in parameters.items()
                if name.startswith(f"{home}.mlp.") and tensor.ndim > 1 and _READS_NORM.search(name)
            ]
            found.append(_norm_site(f"{home}.post_attention_layernorm", readers, linears))
        if home in homes and set(_VALUE) <= names and f"{home}.o_proj" in linears:
            value, output = (modules[f"{home}.{name}"] for name in _VALUE)
            found.append(
                Site(
                    (f"{home}.o_proj",),
                    "value",
                    f"{home}.v_proj",
                    (f"{home}.o_proj.weight",),
                    output.in_features // value.out_features,
                    int(getattr(modules[home], "head_dim", 1)),
                )
            )
        if home in homes and set(_UP) <= names and f"{home}.down_proj" in linears:
            found.append(Site((f"{home}.down_proj",), "up", f"{home}.up_proj", (f"{home}.down_proj.weight",)))
    found = [site for site in found if site.layers and _goes_together(site, parameters)]
    held = {path for site in found for path in site.layers}
    found += [Site((path,)) for path in linears if path not in held]
    places = {path: place for place, path in enumerate(linears)}
    return sorted(found, key=lambda site: places[site.layers[0]])


def _goes_together(site: Site, parameters: Mapping[str, Tensor]) -> bool:
    """Whether the producer has a row for each column of the readers, copies counted."""
    if not set(site.readers) <= parameters.keys() or f"{site.producer}.weight" not in parameters:
        return False
    rows = len(parameters[f"{site.producer}.weight"]) * site.repeats
    return rows % (site.repeats * site.head_dim) == 0 and all(
        parameters[name].shape[-1] == rows for name in site.readers
    )


def _norm_site(producer: str, readers: Sequence[str], linears: Mapping[str, nn.Linear]) -> Site:
    layers = tuple(path for name in readers if (path := name.removesuffix(".weight")) in linears)
    return Site(layers, "norm", producer, tuple(readers))


@torch.no_grad()
def fold(model: nn.Module, site: Site, scale_K: Tensor) -> None:
    """Divide the producer's channels by the scales and multiply the readers' columns, each rounded once to its dtype.

    Args:
        model: rewritten in place.
        site: with a producer.
        scale_K: (K,) positive; tied where the site ties them.
    """
    scale_K = scale_K.double()
    rows = scale_K.reshape(-1, site.repeats, site.head_dim)[:, 0].reshape(-1) if site.repeats > 1 else scale_K
    for tensor in model.get_submodule(site.producer).parameters(recurse=False):
        tensor.copy_(tensor.double() / rows.reshape(-1, *[1] * (tensor.ndim - 1)))
    for name in site.readers:
        tensor = model.get_parameter(name)
        tensor.copy_(tensor.double() * scale_K)


@torch.no_grad()
def provable(model: Any, sites: Iterable[Site], tokens_T: Tensor) -> list[Site]:
    """Return the sites whose fold leaves the model's outputs exactly as they are; the others lose their producer.

    Scales of 1/2, 1 and 2 are exact in every floating dtype, so that a true fold changes no bit of the logits, and
    folding their inverses puts every weight back (but for subnormal ones).

    Args:
        model: unchanged when this returns.
        sites: of the model.
        tokens_T: (T,) a few token ids.
    """
    sites = list(sites)
    expected = _logits(model, tokens_T)
    trials = {site: _powers_of_two(model, site) for site in sites if site.kind}
    if _unchanged(model, trials, tokens_T, expected):
        return sites
    return [
        site if not site.kind or _unchanged(model, {site: trials[site]}, tokens_T, expected) else Site(site.layers)
        for site in sites
    ]


def _unchanged(model: Any, trials: Mapping[Site, Tensor], tokens_T: Tensor, expected: Tensor) -> bool:
    for site, scale_K in trials.items():
        fold(model, site, scale_K)
    same = torch.equal(_logits(model, tokens_T), expected)
    for site, scale_K in trials.items():
        fold(model, site, 1 / scale_K)
    return same


def _powers_of_two(model: nn.Module, site: Site) -> Tensor:
    weight = model.get_parameter(site.readers[0])
    draw = torch.Generator().manual_seed(len(site.producer))
    exponents_K = torch.randint(-1, 2, (weight.shape[-1],), generator=draw)
    return site.tied(torch.exp2(exponents_K.double()).to(weight.device))


def _logits(model: Any, tokens_T: Tensor) -> Tensor:
    found = model(tokens_T[None], use_cache=False).logits
    assert isinstance(found, Tensor)
    return found
