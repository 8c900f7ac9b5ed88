"""Small shapes and parameters that contracts measure plugins on."""

from __future__ import annotations

import torch
from torch import nn

from stackloom.core.shapes import ModelShape


def tiny_shape(**changes: object) -> ModelShape:
    """Return a decoder of two layers with grouped queries, an untied head and query/key norms.

    Example:
        >>> tiny_shape(tied=True).tied
        True
    """
    sizes: dict[str, object] = {
        "name": "tiny",
        "layers": 2,
        "hidden": 24,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 6,
        "intermediate": 40,
        "vocab": 97,
        "tied": False,
        "qk_norm": True,
        "attention_bias": True,
        "max_positions": 1024,
    }
    return ModelShape.model_validate(sizes | changes)


def tiny_parameters(
    shape: ModelShape, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[tuple[str, nn.Parameter]]:
    """Return (name, Parameter) for every weight of a dense model of that shape, named as transformers names them.

    Example:
        >>> shape = tiny_shape()
        >>> sum(parameter.numel() for _, parameter in tiny_parameters(shape)) == shape.parameters
        True
    """
    sizes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (shape.vocab, shape.hidden))]
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for name, rows, columns in shape.linears():
            sizes.append((f"{prefix}.{name}.weight", (rows, columns)))
            mlp = name.startswith("mlp.")
            if shape.mlp_bias if mlp else shape.attention_bias and not name.endswith("o_proj"):
                sizes.append((f"{prefix}.{name}.bias", (rows,)))
        if shape.qk_norm:
            sizes += [(f"{prefix}.self_attn.{which}_norm.weight", (shape.head_dim,)) for which in "qk"]
        sizes += [(f"{prefix}.{which}_layernorm.weight", (shape.hidden,)) for which in ("input", "post_attention")]
    sizes.append(("model.norm.weight", (shape.hidden,)))
    if not shape.tied:
        sizes.append(("lm_head.weight", (shape.vocab, shape.hidden)))
    draw = torch.Generator().manual_seed(seed)
    return [
        (name, nn.Parameter(torch.randn(size, generator=draw, dtype=torch.float64).mul(0.1).to(dtype)))
        for name, size in sizes
    ]
