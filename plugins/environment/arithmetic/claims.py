"""What the tasks promise: they can be solved, the verifier knows right from wrong, and the splits share nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from stackloom.core.chat import Message
from stackloom.core.claims import ClaimContext, ClaimResult
from stackloom.core.slots.environment import Split, Task

TASKS = {"cpu": 1_000, "cpu-full": 20_000}
SPLITS: tuple[Split, ...] = ("train", "held-out")


def demonstrations_verify(ctx: ClaimContext) -> ClaimResult:
    """Share of tasks whose demonstration replays and passes."""
    passed = [_replays(environment, task) for _, environment, task in _tasks(ctx)]
    return _identity(ctx, sum(passed) / len(passed), 1.0, len(passed))


def wrong_answers_fail(ctx: ClaimContext) -> ClaimResult:
    """Share of tasks that pass with an answer that is off by one, either way."""
    passed = []
    for _, environment, task in _tasks(ctx):
        episode = environment.start(task)
        for step in (-1, 1):
            message = Message("assistant", f"The answer is {Fraction(task.secret['answer']) + step}.")
            passed.append(episode.reward([message]).value >= 1.0)
    return _identity(ctx, sum(passed) / len(passed), 0.0, len(passed))


def splits_share_nothing(ctx: ClaimContext) -> ClaimResult:
    """Number of problems that both splits have, over all seeds together."""
    found: dict[Split, set[tuple[str, ...]]] = {split: set() for split in SPLITS}
    for split, _, task in _tasks(ctx):
        found[split].add((task.kind, *sorted(re.findall(r"\d+", " ".join(task.secret["steps"])))))
    shared = found["train"] & found["held-out"]
    return _identity(ctx, float(len(shared)), 0.0, sum(map(len, found.values())))


def _tasks(ctx: ClaimContext) -> Iterator[tuple[Split, Any, Task]]:
    for seed in ctx.seeds:
        environment = ctx.component("environment.arithmetic", seed=seed)
        for split in SPLITS:
            for task in environment.tasks(split, TASKS[ctx.scale]):
                yield split, environment, task


def _replays(environment: Any, task: Task) -> bool:
    episode, messages = environment.start(task), environment.demonstration(task)
    shown = [message.content for message in messages if message.role == "tool"]
    made = [episode.call(call) for message in messages for call in message.tool_calls]
    return bool(made == shown and episode.reward(messages).value >= 1.0)


def _identity(ctx: ClaimContext, ours: float, baseline: float, count: int) -> ClaimResult:
    return ClaimResult(ours=ours, baseline=baseline, seeds=tuple(ctx.seeds), details={"count": count})
