"""Retrofit: teach mixers that replaced attention layers what those layers computed, one layer at a time.

Shape legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def record(teacher: Any, layers: Sequence[int], tokens_BT: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return what each layer's attention saw and gave, (B, T, D) both, while the teacher read the tokens."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            seen[index] = (named["hidden_states"] if "hidden_states" in named else args[0]), output[0]

        return hook

    blocks = teacher.model.layers
    hooks = [blocks[index].self_attn.register_forward_hook(keep(index), with_kwargs=True) for index in layers]
    try:
        teacher.model(input_ids=tokens_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@torch.no_grad()
def pass_the_present_token(mixer: Any) -> None:
    """Start a mixer's convolutions as the identity, so that projections copied from attention mean what they meant."""
    mixer.conv_CW.zero_()
    mixer.conv_CW[:, -1] = 1


def distil(
    teacher: Any,
    student: Any,
    layers: Sequence[int],
    batches: Iterator[Tensor],
    steps: int,
    lr: float = 3e-3,
    say: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Train the student's mixers in `layers` to give what the teacher's attention gave for the same inputs.

    Each mixer's output norm is first scaled to the size of what the attention gave on the first batch. Every layer
    learns from the teacher's own inputs, so layers do not wait for each other. The loss is the squared error over the
    teacher's square (1 for a layer that gives nothing), averaged over layers; AdamW, the learning rate falls along a
    cosine.

    Args:
        teacher: a Llama-style causal language model, untouched.
        student: the same model with attention plugins in `layers`; changed in place.
        layers: numbers of the replaced layers.
        batches: token ids, (B, T) each; `steps` of them are read.
        steps: optimizer steps.
        lr: learning rate at its highest.
        say: takes a line now and then.

    Returns:
        The loss of every step.
    """
    mixers = {index: student.model.layers[index].self_attn.mixer for index in layers}
    parameters = [parameter for mixer in mixers.values() for parameter in mixer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in range(steps):
        pairs = record(teacher, layers, next(batches))
        if step == 0:
            with torch.no_grad():
                for index, (x_BTD, y_BTD) in pairs.items():
                    mixers[index].norm *= y_BTD.square().mean().sqrt() / mixers[index](x_BTD).square().mean().sqrt()
        errors = [
            (mixers[index](x_BTD) - y_BTD).square().mean() / y_BTD.square().mean()
            for index, (x_BTD, y_BTD) in pairs.items()
        ]
        loss = torch.stack(errors).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0:
            say(f"distillation step {step}: {losses[-1]:.3f} of the replaced attention's square")
    return losses


@torch.no_grad()
def held_out_loss(model: Any, tokens_BT: Tensor) -> float:
    """Mean negative log-likelihood of the tokens, in nats; one sequence at a time."""
    losses = [model(input_ids=row[None], labels=row[None], use_cache=False).loss for row in tokens_BT]
    return torch.stack(losses).mean().item()
