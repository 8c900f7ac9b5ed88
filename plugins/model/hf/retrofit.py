"""Puts an attention plugin into the layers of a loaded Llama-style model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from stackloom.core.config import ComponentConfig
from stackloom.core.errors import FitError
from stackloom.core.shapes import ModelShape
from stackloom.core.slots.attention import LayerShape
from stackloom.plugins.model.hosted_attention import HostedAttention, guard

# What a LayerShape can say about an attention layer; anything else would be lost without a word.
DESCRIBED = {f"{name}_proj.weight" for name in "qkvo"} | {f"{name}_proj.bias" for name in "qkv"}


def retrofit(
    model: PreTrainedModel, attention: ComponentConfig, layers: Iterable[int], shape: ModelShape, seed: int
) -> None:
    """Replace `model.model.layers[i].self_attn` for every i of `layers` by a mixer that `attention` builds.

    Where name and shape agree, the mixer takes the old attention's weights; its other parameters are drawn from `seed`.

    Args:
        model: a Llama-style causal language model; changed in place.
        attention: config of the attention plugin.
        layers: numbers of the layers, within the model.
        shape: the model's shape.
        seed: for weights that the checkpoint does not have.

    Raises:
        FitError: the model is built otherwise, or its attention has parts that a `LayerShape` cannot describe (scaled
            rotary positions, sliding windows, query and key norms, an output bias).
    """
    theta = _rope_theta(model)
    decoder = model.model
    for index in layers:
        old = decoder.layers[index].self_attn
        known = dict(old.named_parameters())
        if extra := sorted(known.keys() - DESCRIBED):
            raise FitError(
                f"layer {index}'s attention has {', '.join(extra)}, which a replacement would lose",
                where="model.attention",
            )
        layer = LayerShape(
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_positions=shape.max_positions,
            rope_theta=theta,
            bias="q_proj.bias" in known,
            index=index,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + index)
            mixer = attention.build(layer)
        hosted = HostedAttention(mixer, index)
        hosted.copied = _copy(known, mixer)
        hosted.to(device=known["q_proj.weight"].device, dtype=known["q_proj.weight"].dtype).train(old.training)
        decoder.layers[index].self_attn = hosted
    decoder.register_forward_pre_hook(guard, with_kwargs=True)


def _copy(known: dict[str, nn.Parameter], mixer: nn.Module) -> tuple[str, ...]:
    copied = []
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name in known and known[name].shape == parameter.shape:
                parameter.data = known[name].detach().clone()
                copied.append(name)
    return tuple(copied)


def _rope_theta(model: PreTrainedModel) -> float:
    """Return the base of plain rotary positions.

    Raises:
        FitError: no Llama-style layers, other positions, or a sliding window.
    """
    config = model.config
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not layers or not all(hasattr(getattr(layer, "self_attn", None), "q_proj") for layer in layers):
        raise FitError(
            f"{type(model).__name__} has no model.layers[i].self_attn.q_proj",
            where="model.attention",
            fix="attention plugins go into Llama-style models",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if (
        rope.get("rope_type", "default") != "default"
        or "rope_theta" not in rope
        or rope.get("partial_rotary_factor", 1.0) != 1.0
    ):
        raise FitError(
            f"the model's rotary positions are scaled ({rope.get('rope_type')}), which a replacement would lose",
            where="model.attention",
            fix="use a checkpoint with plain rotary positions",
        )
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        raise FitError(
            f"the model attends to a window of {config.sliding_window} tokens, which a replacement would lose",
            where="model.attention",
        )
    return float(rope["rope_theta"])
