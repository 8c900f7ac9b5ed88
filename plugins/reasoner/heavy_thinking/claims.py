"""R1 and R2 of the page: what the machinery does, on scripted models; and what it gives on SmolLM2-135M."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any

from stackloom.core.chat import Message
from stackloom.core.claims import ClaimContext, ClaimResult, Table
from stackloom.core.generation import ChatRequest
from stackloom.plugins.reasoner.heavy_thinking import accuracy
from stackloom.plugins.reasoner.question import Question, Thought
from stackloom.plugins.reasoner.scripted import Line, ScriptedModel
from stackloom.plugins.reasoner.votes import Ballot, decided, exact_stop_calls, half_beta, majority_accuracy, winner

ASK = (Message("user", "Which?"),)
DRAWS = {"cpu": 100_000, "cpu-full": 1_000_000}
VECTORS = (((3, 0), 0.9375, False), ((4, 0), 0.96875, True), ((5, 1), 0.9375, False), ((6, 1), 0.96484375, True))


def _draw(ctx: ClaimContext, width: int, p: float) -> tuple[float, float, int]:
    """Accuracy of the vote, mean calls of the exact stop, and the draws whose winner it changed."""
    right = calls = changed = 0
    draws = DRAWS[ctx.scale] // len(ctx.seeds)
    for seed in ctx.seeds:
        rng = random.Random(f"{seed}/{width}/{p}")
        for _ in range(draws):
            every = [Ballot(number, "right" if rng.random() < p else "wrong") for number in range(width)]
            found = winner(every)
            first = width // 2 + 1  # votes without which no majority is certain
            done = next(n for n in range(first, width + 1) if decided(every[:n], width, "shortest", equal=str.__eq__))
            early = winner(every[:done])
            assert found is not None
            assert early is not None
            right += found.answer == "right"
            calls += done
            changed += early.answer != found.answer
    total = draws * len(ctx.seeds)
    return right / total, calls / total, changed


def vote_accuracy_is_the_closed_form(ctx: ClaimContext) -> ClaimResult:
    """Largest distance of the measured accuracy from the closed form, in standard errors."""
    rows, worst = [], 0.0
    for width, p in ((3, 0.6), (5, 0.4), (9, 0.7)):
        measured, _, _ = _draw(ctx, width, p)
        exact = majority_accuracy(p, width)
        sigmas = abs(measured - exact) / math.sqrt(exact * (1 - exact) / DRAWS[ctx.scale])
        worst = max(worst, sigmas)
        rows.append((width, p, exact, measured, sigmas))
    table = Table(title="Accuracy of a vote", columns=("width", "p", "closed form", "measured", "sigmas"), rows=rows)
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds), details={"tables": [table]})


def exact_stop_changes_no_winner(ctx: ClaimContext) -> ClaimResult:
    """Number of draws in which the exact stop names another winner than all votes do."""
    changed = sum(_draw(ctx, width, p)[2] for width, p in ((5, 0.4), (9, 0.55)))
    details = {"draws": 2 * DRAWS[ctx.scale]}
    return ClaimResult(ours=float(changed), baseline=0.0, seeds=tuple(ctx.seeds), details=details)


def exact_stop_saves_the_expected_calls(ctx: ClaimContext) -> ClaimResult:
    """Mean calls of the exact stop at width 9 minus their expectation, as a share of it."""
    rows, worst = [], 0.0
    for p in (0.5, 0.7, 0.9):
        _, measured, _ = _draw(ctx, 9, p)
        exact = exact_stop_calls(p, 9)
        rows.append((p, exact, measured))
        worst = max(worst, abs(measured / exact - 1))
    table = Table(title="Calls until the vote of 9 is decided", columns=("p", "expected", "measured"), rows=rows)
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds), details={"tables": [table]})


def bayesian_stop_has_the_papers_values(ctx: ClaimContext) -> ClaimResult:
    """Largest distance from the four test vectors, and infinity for a wrong decision."""
    distances = [
        abs(half_beta(*counts) - belief) if (half_beta(*counts) >= 0.95) is stops else math.inf
        for counts, belief, stops in VECTORS
    ]
    return ClaimResult(ours=max(distances), baseline=0.0, seeds=tuple(ctx.seeds))


def _think(ctx: ClaimContext, model: ScriptedModel, **options: Any) -> tuple[Thought, float]:
    async def run() -> tuple[Thought, float]:
        reasoner = ctx.component("reasoner.heavy-thinking", **options)
        start = time.perf_counter()
        events = [event async for event in reasoner.think(Question(ASK, model))]
        took = time.perf_counter() - start
        assert isinstance(events[-1], Thought)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return events[-1], took

    return asyncio.run(run())


def _is_summary(request: ChatRequest) -> bool:
    return "THINKERS START" in request.messages[-1].content


def time_is_the_slowest_thinker_and_the_summary(ctx: ClaimContext) -> ClaimResult:
    """Seconds beyond max(thinkers) + summary, worst over seeds; the sum of all would be seconds more."""
    beyond = []
    for seed in ctx.seeds:
        rng = random.Random(seed)
        delays = [rng.uniform(0.1, 0.6) for _ in range(8)]

        def script(request: ChatRequest, delays: list[float] = delays) -> Line:
            return Line("42", seconds=0.3 if _is_summary(request) else delays[request.sampling.seed])

        _, took = _think(ctx, ScriptedModel(script), width=8)
        beyond.append(took - max(delays) - 0.3)
    return ClaimResult(ours=max(beyond), baseline=0.0, seeds=tuple(ctx.seeds), details={"seconds beyond": beyond})


def deadline_is_kept(ctx: ClaimContext) -> ClaimResult:
    """Seconds beyond the deadline where thinkers and summary hang, worst over seeds."""
    beyond = []
    for seed in ctx.seeds:

        def script(request: ChatRequest, seed: int = seed) -> Line:
            return Line("42", hangs=_is_summary(request) or (request.sampling.seed + seed) % 2 == 0)

        thought, took = _think(ctx, ScriptedModel(script), width=8, deadline_s=0.8, summary_reserve_s=0.3)
        assert thought.message.content == "42"
        beyond.append(took - 0.8)
    return ClaimResult(ours=max(beyond), baseline=0.0, seeds=tuple(ctx.seeds), details={"seconds beyond": beyond})


def early_stop_closes_every_call(ctx: ClaimContext) -> ClaimResult:
    """Calls that were not broken off although the vote was decided, over all seeds."""
    left = 0
    for seed in ctx.seeds:

        def script(request: ChatRequest, seed: int = seed) -> Line:
            return Line("42", hangs=(request.sampling.seed + seed) % 9 >= 5)

        model = ScriptedModel(script)
        thought, _ = _think(ctx, model, width=9, aggregator="vote", early_stop="exact")
        assert thought.stopped_by == "exact"
        left += model.running + (4 - model.broken_off)
    return ClaimResult(
        ours=float(left), baseline=0.0, seeds=tuple(ctx.seeds), details={"broken off": 4 * len(ctx.seeds)}
    )


VOTE, HEAVY = f"self-consistency {accuracy.WIDTH}", f"heavy [{accuracy.WIDTH}]"


def votes_beat_single_attempts(ctx: ClaimContext) -> ClaimResult:
    """Share solved by the vote minus the mean share of single attempts, by the model that was taught the tasks."""
    return _gain(ctx, VOTE, "single", 0.05)


def heavy_beats_single_attempts(ctx: ClaimContext) -> ClaimResult:
    """Share solved by heavy thinking minus the mean share of single attempts, by the same model."""
    return _gain(ctx, HEAVY, "single", 0.03)


def heavy_beats_votes(ctx: ClaimContext) -> ClaimResult:
    """Share solved by heavy thinking minus that of the vote over the same answers, by the same model."""
    return _gain(ctx, HEAVY, VOTE, 0.0)


def _gain(ctx: ClaimContext, ours: str, theirs: str, baseline: float) -> ClaimResult:
    found = {subject: accuracy.measured(ctx, subject) for subject in accuracy.SUBJECTS}
    difference = accuracy.gain(found[accuracy.TAUGHT], ours, theirs)
    return ClaimResult(
        ours=difference["value"],
        interval=difference["interval"],
        baseline=baseline,
        seeds=ctx.seeds[:1],
        details=accuracy.details(found),
    )
