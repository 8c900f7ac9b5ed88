"""The objective's gradient on a tabular policy, and what the printed formula does to positive advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.plugins.algorithm.batch import Batch
from stackloom.plugins.algorithm.grpo_longcat.config import GrpoLongcatConfig

RESPONSES, TOKENS, STATES, ACTIONS = 8, 6, 5, 4
MAX_TOKENS = 32


def gradient_is_the_formula(ctx: ClaimContext) -> ClaimResult:
    """Largest distance between autograd's gradient of the logits and the one written out by hand."""
    worst = 0.0
    for seed in ctx.seeds:
        draw = torch.Generator().manual_seed(seed)
        logits = torch.randn(STATES, ACTIONS, generator=draw, dtype=torch.float64, requires_grad=True)
        states = torch.randint(STATES, (RESPONSES, TOKENS), generator=draw)
        actions = torch.randint(ACTIONS, (RESPONSES, TOKENS), generator=draw)
        table = logits.log_softmax(-1)
        logp = table[states, actions]
        batch = _batch(logp.detach(), draw)
        algorithm = ctx.component("algorithm.grpo-longcat", max_tokens=MAX_TOKENS)
        torch.autograd.backward(algorithm.loss(logp, batch))
        assert logits.grad is not None
        by_hand = _by_hand(table.detach().exp(), logp.detach(), states, actions, batch)
        worst = max(worst, float((logits.grad - by_hand).abs().max()))
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds))


def literal_formula_has_no_positive_gradient(ctx: ClaimContext) -> ClaimResult:
    """Largest gradient of max(min(r A, clip(r) A), c A) over ratios from 0.1 to 10 and advantages above 0."""
    config = GrpoLongcatConfig()
    ratio = torch.linspace(0.1, 10, 500, dtype=torch.float64)[:, None].requires_grad_()
    advantage = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    clipped = ratio.clamp(1 - config.negative_low, 1 + config.positive_high)
    inner = torch.minimum(ratio * advantage, clipped * advantage)
    torch.autograd.backward(torch.maximum(inner, config.negative_high * advantage).sum())
    assert ratio.grad is not None
    return ClaimResult(ours=float(ratio.grad.abs().max()), baseline=0.0, seeds=tuple(ctx.seeds[:1]))


def _batch(logp: Tensor, draw: torch.Generator) -> Batch:
    """Two groups of four; ratios on both sides of every bound, one old response, one without a reward."""
    noise = [torch.randn(RESPONSES, TOKENS, generator=draw, dtype=torch.float64) for _ in range(2)]
    old = logp + noise[0]
    return Batch(
        logp_old=old,
        logp_infer=old + noise[1],
        mask=torch.rand(RESPONSES, TOKENS, generator=draw) < 0.8,
        rewards=torch.rand(RESPONSES, generator=draw, dtype=torch.float64),
        valid=torch.arange(RESPONSES) != 1,
        groups=torch.arange(RESPONSES) // 4,
        ages=torch.where(torch.arange(RESPONSES) == 6, 3, 0),
        responses=RESPONSES,
        tokens=RESPONSES * TOKENS,
    )


def _by_hand(policy: Tensor, logp: Tensor, states: Tensor, actions: Tensor, batch: Batch) -> Tensor:
    """Return the gradient of the logits, token by token: d log pi(a|s) / d logits[s] is onehot(a) - pi(.|s)."""
    config = GrpoLongcatConfig()
    gradient = torch.zeros_like(policy)
    trained = [row for row in range(RESPONSES) if row not in (1, 6)]
    for row in trained:
        rewards = [float(batch.rewards[other]) for other in trained if other // 4 == row // 4]
        mean = sum(rewards) / len(rewards)
        deviation = (sum((reward - mean) ** 2 for reward in rewards) / len(rewards)) ** 0.5
        advantage = (float(batch.rewards[row]) - mean) / deviation
        for token in range(TOKENS):
            ratio = float((logp[row, token] - batch.logp_old[row, token]).exp())
            if advantage > 0:
                alive = ratio < 1 + config.positive_high
            else:
                alive = 1 - config.negative_low < ratio < config.negative_high
            if not alive or not batch.mask[row, token]:
                continue
            weight = min(float((batch.logp_old[row, token] - batch.logp_infer[row, token]).exp()), 2.0)
            state, action = int(states[row, token]), int(actions[row, token])
            step = -policy[state]
            step[action] += 1
            gradient[state] -= weight * ratio * advantage * step / (RESPONSES * MAX_TOKENS)
    return gradient
