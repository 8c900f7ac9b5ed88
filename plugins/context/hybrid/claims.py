"""What keeping notes and beginning anew are worth, with a scripted agent in `environment.search-world`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from stackloom.core.chat import Message
from stackloom.core.claims import ClaimContext, ClaimResult, Curve, Table
from stackloom.core.generation import Sampling
from stackloom.core.slots.context import Ask, Cut, Seen
from stackloom.core.statistics import mean_interval
from stackloom.environments.agent_loop import play_chat
from stackloom.plugins.context.searcher import Searcher, words

TASKS = {"cpu": 60, "cpu-full": 300}  # per seed
BUDGETS = (25, 50, 100, 200, 400)
WINDOW = 2000  # words, as the page's 2K tokens
CUT = 1500  # leaves room for notes on forty ships
FULL = 1850  # leaves room for one more search
PATIENCE = 100
SLIPS = (0.0, 0.01, 0.03, 0.1)
SLIP = 0.03
POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "discard": {"tokens": FULL},
    "discard, early": {"tokens": CUT},
    "summary": {"tokens": CUT},
    "hybrid": {"tokens": CUT, "turns": PATIENCE},
}


@dataclass(frozen=True)
class Run:
    """One attempt: whether it was right, and the agent's messages until it ended."""

    passed: bool
    turns: int


def discarding_helps(ctx: ClaimContext) -> ClaimResult:
    """Discard-all minus none at the largest budget: a fresh start may be luckier."""
    return _difference(ctx, "discard", "none", SLIP)


def notes_help_more(ctx: ClaimContext) -> ClaimResult:
    """Summary minus discard-all at the largest budget."""
    return _difference(ctx, "summary", "discard", SLIP)


def hybrid_beats_summary_with_room(ctx: ClaimContext) -> ClaimResult:
    """Hybrid minus summary at the largest budget, with an agent whose notes are sometimes wrong."""
    return _difference(ctx, "hybrid", "summary", SLIP)


def faultless_notes_need_no_fresh_start(ctx: ClaimContext) -> ClaimResult:
    """Hybrid minus summary at the largest budget, with an agent whose notes are always right."""
    found = _difference(ctx, "hybrid", "summary", 0.0)
    return ClaimResult(ours=found.ours, baseline=0.0, seeds=found.seeds, details=found.details)


def summaries_stay_below_the_threshold(ctx: ClaimContext) -> ClaimResult:
    """Share of cuts after which the question stands first and the prompt is below the threshold; all policies."""
    cuts, right = 0, 0
    for policy in POLICIES:
        for seed in ctx.seeds:
            environment = _world(ctx, seed)
            for task in environment.tasks("held-out", 20):
                watched = _Watched(_context(ctx, policy))
                asyncio.run(_attempt(environment, task, Searcher(WINDOW, slip=SLIP, seed=seed), watched))
                for cut, question in watched.cuts:
                    size = sum(map(words, (*question, *cut.messages)))
                    cuts += 1
                    right += question == task.messages and size < POLICIES[policy]["tokens"]
    return ClaimResult(ours=right / cuts, baseline=1.0, seeds=tuple(ctx.seeds), details={"cuts": cuts})


class _Watched:
    """A context whose cuts are written down."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.cuts: list[tuple[Cut, tuple[Message, ...]]] = []

    async def manage(self, seen: Seen, ask: Ask) -> Cut | None:
        cut: Cut | None = await self._inner.manage(seen, ask)
        if cut is not None:
            self.cuts.append((cut, seen.question))
        return cut


def _difference(ctx: ClaimContext, first: str, second: str, slip: float) -> ClaimResult:
    """First minus second at the largest budget, paired by task; beside it, all policies at all budgets."""
    runs = {policy: _runs(ctx, policy, slip) for policy in POLICIES}
    differences = [
        float(_passes(one, BUDGETS[-1])) - float(_passes(two, BUDGETS[-1]))
        for one, two in zip(runs[first], runs[second], strict=True)
    ]
    found = mean_interval(differences)
    curve = Curve(
        title=f"Tasks solved; a note is wrong with probability {slip:g}",
        across="most messages of the agent",
        up="share",
        x=BUDGETS,
        series={policy: tuple(_share(made, budget) for budget in BUDGETS) for policy, made in runs.items()},
    )
    tables = [
        Table(
            title=f"Tasks solved within {BUDGETS[-1]} messages, by how often a note is wrong",
            columns=("probability", *POLICIES),
            rows=tuple(
                (each, *(_share(_runs(ctx, policy, each), BUDGETS[-1]) for policy in POLICIES)) for each in SLIPS
            ),
        )
    ]
    return ClaimResult(
        ours=found["value"],
        interval=tuple(found["interval"]),
        baseline=0.0,
        seeds=tuple(ctx.seeds),
        details={"curves": [curve], "tables": tables, "tasks": len(differences), "window": WINDOW, "cut": CUT},
    )


def _passes(run: Run, budget: int) -> bool:
    """Whether the attempt was right within a budget: the agent does not know it, so a longer one only goes on."""
    return run.passed and run.turns <= budget


def _share(runs: Sequence[Run], budget: int) -> float:
    return sum(_passes(run, budget) for run in runs) / len(runs)


def _runs(ctx: ClaimContext, policy: str, slip: float) -> list[Run]:
    made = _made(ctx.scale)
    key = (policy, slip, tuple(ctx.seeds))
    if key not in made:
        made[key] = []
        for seed in ctx.seeds:
            environment, context = _world(ctx, seed), _context(ctx, policy)
            for task in environment.tasks("held-out", TASKS[ctx.scale]):
                agent = Searcher(WINDOW, slip=slip, seed=seed)
                made[key].append(asyncio.run(_attempt(environment, task, agent, context)))
    return made[key]


@cache
def _made(scale: str) -> dict[Any, list[Run]]:
    """Attempts that an earlier claim of this process has made: they are the same for all."""
    return {}


def _context(ctx: ClaimContext, policy: str) -> Any:
    return ctx.component(f"context.{policy.partition(',')[0]}", **POLICIES[policy])


def _world(ctx: ClaimContext, seed: int) -> Any:
    return ctx.component("environment.search-world", seed=seed, fewest=10, most=40)


async def _attempt(environment: Any, task: Any, agent: Searcher, context: Any) -> Run:
    episode = environment.start(task)
    made = await play_chat(task, episode, agent, sampling=Sampling(), turns=BUDGETS[-1], key=task.id, context=context)
    turns = sum(message.role == "assistant" for message in made.messages)
    return Run(made.attempt(episode).reward.value == 1.0, turns)
