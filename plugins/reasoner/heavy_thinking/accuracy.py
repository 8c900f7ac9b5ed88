"""Accuracy over tokens on a real model: every reasoner on the same recorded attempts, and summaries on top of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stackloom.core.claims import ClaimContext, Curve, Table
from stackloom.core.slots.environment import Reward
from stackloom.core.slots.reasoner import Attempt
from stackloom.core.statistics import mean_interval

WIDTH, REFINED = 8, 4
WIDTHS = (2, 4, 8)
TASKS = {"cpu-full": {"arithmetic": 95, "worlds": 24}, "gpu": {"arithmetic": 418, "worlds": 200}}
MODEL = {"use": "model.hf", "checkpoint": "smollm2-135m-instruct"}
ARITHMETIC = {"use": "environment.arithmetic"}
WORLDS = {"use": "environment.domain-graph", "tools": 4, "low": 2, "high": 3}
LORA = {
    "adapter": {"use": "adapter.lora", "rank": 16},
    "optimizer": {"use": "optimizer.adamw", "lr": 2e-3, "weight_decay": 0},
    "batch_size": 1,
}
TEACHING: dict[str, dict[str, Any]] = {  # as in examples/tool_agent.yaml and examples/domain_agent.yaml
    "arithmetic": {"steps": 80, "sequence_length": 768, "warmup_steps": 6},
    "worlds": {"steps": 200, "sequence_length": 1024, "warmup_steps": 8},
}
LIMITS = {"arithmetic": {"max_tokens": 64, "turns": 4}, "worlds": {"max_tokens": 96, "turns": 6}}
ENVIRONMENTS: dict[str, dict[str, Any]] = {"arithmetic": ARITHMETIC, "worlds": WORLDS}
TAUGHT, PLAIN, TAUGHT_WORLDS = "taught arithmetic", "as it comes, arithmetic", "taught worlds"
SUBJECTS = {TAUGHT: ("arithmetic", True), PLAIN: ("arithmetic", False), TAUGHT_WORLDS: ("worlds", True)}


@dataclass(frozen=True)
class Arm:
    """One way of spending tokens on every task.

    Attributes:
        passed: per task, 0 to 1; the mean over attempts for single ones.
        tokens: mean per task, thinkers and summaries together.
    """

    passed: tuple[float, ...]
    tokens: float

    @property
    def share(self) -> float:
        """Share of tasks solved."""
        return sum(self.passed) / len(self.passed)


def measured(ctx: ClaimContext, subject: str) -> dict[str, Arm]:
    """Run a subject and return its arms by name; the runs are shared by all claims."""
    kind, taught = SUBJECTS[subject]
    environment = ENVIRONMENTS[kind]
    teach = {
        **LORA,
        **TEACHING[kind],
        "data": {"use": "data.environment-trajectories", "environment": environment, "count": 600},
    }
    evaluate = {
        "environment": environment,
        "tasks": TASKS[ctx.scale][kind],
        "temperature": 0.7,
        **LIMITS[kind],
    }
    heavy: dict[str, Any] = {"use": "reasoner.heavy-thinking"}
    stages: list[dict[str, Any]] = [{"train": teach}] if taught else []
    rounds = [[WIDTH], [WIDTH, REFINED]] if subject == TAUGHT else [[WIDTH]]
    stages += [{"evaluate": {**evaluate, "reasoner": {**heavy, "rounds": each}}} for each in rounds]
    run = ctx.run({"model": MODEL, "resources": {"dtype": "auto"}, "stages": stages})
    first, *refined = (run.metrics(place)["attempts"] for place in range(int(taught), len(stages)))
    recorded = {task: [_attempt(each) for each in found["made"][:WIDTH]] for task, found in first.items()}
    arms = {"single": _single(recorded)}
    for width in WIDTHS:
        arms[f"self-consistency {width}"] = _replayed(ctx, "reasoner.self-consistency", width, recorded)
    for width in WIDTHS:
        arms[f"best of {width}"] = _replayed(ctx, "reasoner.best-of-n", width, recorded)
    arms[f"heavy [{WIDTH}]"] = _chosen(first)
    for each in refined:
        arms[f"heavy [{WIDTH}, {REFINED}]"] = _chosen(each)
    for name, arm in arms.items():
        ctx.say(f"{subject}: {name} solves {arm.share:.1%} with {arm.tokens:.0f} tokens a task")
    return arms


def gain(arms: Mapping[str, Arm], ours: str, theirs: str) -> Mapping[str, Any]:
    """Return the mean difference of two arms with its 95 per cent interval, paired by task."""
    return mean_interval([a - b for a, b in zip(arms[ours].passed, arms[theirs].passed, strict=True)])


def details(found: Mapping[str, Mapping[str, Arm]]) -> dict[str, Any]:
    """Return tables and curves of all subjects."""
    tables, curves = [], []
    for subject, arms in found.items():
        heavy, vote, single = arms[f"heavy [{WIDTH}]"], arms[f"self-consistency {WIDTH}"], arms["single"]
        some = [float(value > 0) for value in single.passed]
        none_right = [h for h, any_right in zip(heavy.passed, some, strict=True) if not any_right]
        vote_right = [1 - h for h, v in zip(heavy.passed, vote.passed, strict=True) if v == 1.0]
        rows: list[tuple[Any, ...]] = [
            (name, arm.share, arm.tokens, *_interval(gain(arms, name, "single"))) for name, arm in arms.items()
        ]
        rows.append((f"pass@{WIDTH}: any attempt right", sum(some) / len(some), None, None, None, None))
        tables.append(
            Table(
                title=f"SmolLM2-135M, {subject}: {len(some)} held-out tasks",
                columns=("arm", "share solved", "tokens per task", "above single", "from", "to"),
                rows=tuple(rows),
            )
        )
        rates: list[tuple[Any, ...]] = [
            ("emergent correctness: right where no attempt is", len(none_right), _share(none_right)),
            ("regression: wrong where the vote is right", len(vote_right), _share(vote_right)),
        ]
        tables.append(
            Table(
                title=f"Summaries of heavy [{WIDTH}], {subject}", columns=("rate", "tasks", "share"), rows=tuple(rates)
            )
        )
        curves.append(_curve(subject, arms))
    return {"tables": tables, "curves": curves}


def _curve(subject: str, arms: Mapping[str, Arm]) -> Curve:
    """Accuracy over tokens, a line for each kind of arm."""
    lines: dict[str, list[Arm]] = {"vote": [arms["single"]], "best of n": [arms["single"]], "heavy": []}
    for name, arm in arms.items():
        line = "vote" if name.startswith("self") else "best of n" if name.startswith("best") else "heavy"
        if name != "single":
            lines[line].append(arm)
    places = sorted({arm.tokens for arm in arms.values()})
    series = {
        line: tuple(next((arm.share for arm in members if arm.tokens == place), None) for place in places)
        for line, members in lines.items()
    }
    return Curve(title=subject, across="tokens per task", up="share solved", x=tuple(places), series=series)


def _interval(found: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    low, high = found["interval"] or (None, None)
    return found["value"], low, high


def _share(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _attempt(told: Mapping[str, Any]) -> Attempt:
    reward = Reward(told["value"], told["valid"])
    return Attempt(told["answer"], (), told["tokens"], reward, told["logprob"])


def _single(recorded: Mapping[str, Sequence[Attempt]]) -> Arm:
    passed = tuple(sum(one.reward.value >= 1.0 for one in made) / len(made) for made in recorded.values())
    tokens = sum(one.tokens for made in recorded.values() for one in made) / sum(map(len, recorded.values()))
    return Arm(passed, tokens)


def _replayed(ctx: ClaimContext, plugin: str, width: int, recorded: Mapping[str, Sequence[Attempt]]) -> Arm:
    """Let a reasoner choose among the first attempts that were recorded for each task."""
    reasoner = ctx.component(plugin, width=width)

    async def choose(made: Sequence[Attempt]) -> tuple[float, int]:
        solution = await reasoner.solve(_Recorded(made))
        return float(solution.attempts[solution.chosen].reward.value >= 1.0), sum(one.tokens for one in made[:width])

    async def choose_all() -> list[tuple[float, int]]:
        return [await choose(made) for made in recorded.values()]

    found = asyncio.run(choose_all())
    return Arm(tuple(passed for passed, _ in found), sum(tokens for _, tokens in found) / len(found))


@dataclass(frozen=True)
class _Recorded:
    """Fulfils `core.slots.reasoner.Attempts` with attempts that were made before."""

    made: Sequence[Attempt]
    question: tuple[Any, ...] = ()

    async def __call__(self, index: int, messages: Any = None, /) -> Attempt:
        return self.made[index]


def _chosen(found: Mapping[str, Any]) -> Arm:
    passed = tuple(float(each["made"][each["chosen"]]["value"] >= 1.0) for each in found.values())
    tokens = sum(one["tokens"] for each in found.values() for one in each["made"])
    return Arm(passed, tokens / len(passed))
