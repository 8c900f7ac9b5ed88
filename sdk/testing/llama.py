"""A Llama with random weights of any small shape, for contracts whose components work on a loaded model."""

from __future__ import annotations

from typing import Any

import torch

from stackloom.core.shapes import ModelShape
from stackloom.testing.tiny import tiny_shape


def llama_shape(**changes: object) -> ModelShape:
    """Return a shape that `tiny_llama` can build: two layers, grouped queries, an untied head, no biases.

    Example:
        >>> llama_shape(tied=True).qk_norm
        False
    """
    return tiny_shape(
        **{"qk_norm": False, "attention_bias": False, "hidden": 32, "head_dim": 8, "intermediate": 48, **changes}
    )


def tiny_llama(shape: ModelShape | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return a `transformers.LlamaForCausalLM` in eval mode, drawn without touching the global generator.

    Weights have a deviation of 0.1, so that layers matter to the logits.

    Example:
        >>> tiny_llama()(torch.arange(5)[None]).logits.shape
        torch.Size([1, 5, 97])
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = shape or llama_shape()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                vocab_size=shape.vocab,
                max_position_embeddings=shape.max_positions,
                tie_word_embeddings=shape.tied,
                attention_bias=shape.attention_bias,
                mlp_bias=shape.mlp_bias,
                initializer_range=0.1,
            )
        )
    return model.to(dtype).eval()
