"""A small Llama over bytes and the loop that trains it: the subject on which optimizers are compared.

Shapes: B sequences, T tokens, H query heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256


@dataclass(frozen=True)
class Size:
    """Layers, width, query heads and feed-forward width; one key-value head serves all query heads."""

    layers: int = 4
    width: int = 96
    heads: int = 6
    inner: int = 256


@dataclass(frozen=True)
class Schedule:
    """Steps, sequences of a step, tokens of a sequence; a cosine down to zero after a tenth of warm-up."""

    steps: int = 250
    sequences: int = 16
    length: int = 128
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at a step, from 0."""
        warmup = max(1, self.steps // 10)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    eos_token_id = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the bytes."""
        return list(text.encode())


class Layer(nn.Module):
    """Grouped-query attention and SwiGLU, each behind an RMS norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, head = size.width, size.width // size.heads
        self.heads, self.head = size.heads, head
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, head, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(width, size.inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(size.inner, width, bias=False)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return the layer's output."""
        y = self.attention_norm(x_BTC)
        q = _rotated(self.q_proj(y).unflatten(-1, (self.heads, self.head)).transpose(1, 2), cos_TD, sin_TD)
        k = _rotated(self.k_proj(y).unsqueeze(1), cos_TD, sin_TD).expand_as(q)
        v = self.v_proj(y).unsqueeze(1).expand_as(q)
        x_BTC = x_BTC + self.o_proj(_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.mlp_norm(x_BTC)
        return x_BTC + self.down_proj(functional.silu(self.gate_proj(y)) * self.up_proj(y))


class ByteLlama(nn.Module):
    """A decoder over bytes with tied embeddings: 0.41 million parameters at the default size."""

    def __init__(self, size: Size, seed: int) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(VOCABULARY, size.width)
        self.layers = nn.ModuleList([Layer(size) for _ in range(size.layers)])
        self.norm = nn.RMSNorm(size.width)
        draw = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=draw)

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy of each byte after the first, in nats."""
        inputs, targets = tokens_BT[:, :-1], tokens_BT[:, 1:]
        cos_TD, sin_TD = _rotation(inputs.shape[1], self.size.width // self.size.heads, inputs.device)
        x = self.embed(inputs) * self.size.width**0.5
        for layer in self.layers:
            x = layer(x, cos_TD, sin_TD)
        logits = functional.linear(self.norm(x), self.embed.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _attention(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> Tensor:
    """Causal softmax attention, written out so that it can be differentiated twice."""
    scores = q_BHTD @ k_BHTD.mT * q_BHTD.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ v_BHTD


def _rotation(length: int, head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(length), 10_000.0 ** (-torch.arange(0, head, 2) / head)).to(device)
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


def _rotated(x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos_TD + torch.cat((-second, first), -1) * sin_TD


def train(
    model: ByteLlama,
    optimizer: Any,
    text_ST: Tensor,
    schedule: Schedule,
    seed: int,
    watch: Callable[[int, float], None] = lambda step, loss: None,
    begin: Callable[[int], object] = lambda step: None,
) -> None:
    """Train in place; the batches are a function of the seed alone.

    Args:
        model: what is trained.
        optimizer: over its named parameters; the groups' learning rates are taken as the peaks.
        text_ST: sequences of at least the schedule's length.
        schedule: how long, and how much at once.
        seed: of the batches.
        watch: told each step and its training loss.
        begin: called before each step, for what follows a schedule.
    """
    draw = torch.Generator().manual_seed(seed)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(schedule.steps):
        begin(step)
        rows = torch.randint(len(text_ST), (schedule.sequences,), generator=draw)
        loss = model.loss(text_ST[rows, : schedule.length])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(step)
        optimizer.step()
        watch(step, float(loss.detach()))


@torch.no_grad()
def held_out_loss(model: ByteLlama, text_ST: Tensor, chunk: int = 64) -> float:
    """Return the mean loss over sequences of one length, in nats per byte."""
    parts: Sequence[Tensor] = text_ST.split(chunk)
    return sum(float(model.loss(part)) * len(part) for part in parts) / len(text_ST)
