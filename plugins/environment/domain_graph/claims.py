"""What the paper's construction promises, measured on 240 environments of twenty domains (1,000 at cpu-full)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from stackloom.core.claims import ClaimContext, ClaimResult, Curve, Table
from stackloom.core.statistics import mean_interval, pass_rate
from stackloom.environments.acceptance import attempted, attempts
from stackloom.environments.domains import domain_names, find_domain
from stackloom.environments.factory import BuiltTask, Factory, Growth, Recipe, replays, run_step
from stackloom.environments.graph import stranded
from stackloom.environments.solver import difficulty

ENVIRONMENTS = {"cpu": 250, "cpu-full": 1_000}
GROWTHS: dict[Growth, str] = {
    "checked": "dependency-checked growth",
    "random": "random, anybody's rows patched",
    "random-own": "random, the user's rows patched",
    "random-fitting": "random, patched where no row fits",
}
DIGESTS = """
import sys
from stackloom.environments.domains import find_domain
from stackloom.environments.factory import Factory, Recipe
factories = {}
for line in sys.stdin.read().split():
    name, _, seed = line.partition(":")
    factories.setdefault(name, Factory(find_domain(name), Recipe()))
    print(factories[name].build(seed).digest)
"""


def golden_chains_replay(ctx: ClaimContext) -> ClaimResult:
    """Share of environments whose golden chains all replay after growth; and how hard the solver finds them."""
    kept, attempts_by_domain = [], dict[str, list[float]]()
    for place, built in enumerate(_environments(ctx)):
        kept.append(replays(built))
        if place % 5 == 0:  # the solver is slower than the factory
            attempts_by_domain.setdefault(built.domain.name, []).append(difficulty(built, tries=4))
    table = Table(
        title="Difficulty: mean number of calls that the solver tries",
        columns=("domain", "environments", "calls tried"),
        rows=tuple((name, len(found), sum(found) / len(found)) for name, found in sorted(attempts_by_domain.items())),
    )
    return _result(ctx, sum(kept) / len(kept), 1.0, {"environments": len(kept), "tables": [table]})


def random_injection_breaks_chains(ctx: ClaimContext) -> ClaimResult:
    """Share of environments that replay after as many tools were added at random and anybody's rows were patched.

    The table also says what two other ways of patching do: the user's own rows alone, and rows only where none fits.
    """
    kept = {
        growth: [[replays(built) for built in _environments(ctx, growth=growth, only=name)] for name in domain_names()]
        for growth in GROWTHS
    }
    rates = {growth: pass_rate([ok for found in domains for ok in found]) for growth, domains in kept.items()}
    rows: list[tuple[Any, ...]] = [
        (name, *(sum(domains[place]) / len(domains[place]) for domains in kept.values()))
        for place, name in enumerate(domain_names())
    ]
    rows.append(("all", *(rate["value"] for rate in rates.values())))
    for end, words in enumerate(("all, 95 % at least", "all, 95 % at most")):
        rows.append((words, *(rate["interval"][end] for rate in rates.values())))
    table = Table(
        title="Environments whose golden chains replay", columns=("domain", *GROWTHS.values()), rows=tuple(rows)
    )
    return ClaimResult(
        ours=rates["random"]["value"],
        interval=tuple(rates["random"]["interval"]),
        baseline=rates["checked"]["value"],
        seeds=tuple(ctx.seeds),
        details={"tables": [table]},
    )


def twenty_tools(ctx: ClaimContext) -> ClaimResult:
    """Share of environments with at least 20 tools, none of which lacks somebody who tells what it needs."""
    good, sizes = [], Counter[int]()
    for built in _environments(ctx):
        told = _factory(built.domain.name, "checked").graph.told_by_person
        good.append(len(built.tools) >= 20 and not stranded(built.tools.values(), told))
        sizes[len(built.tools)] += 1
    details = {"environments": len(good), "tools": {str(size): count for size, count in sorted(sizes.items())}}
    return _result(ctx, sum(good) / len(good), 1.0, details)


def right_attempts_pass(ctx: ClaimContext) -> ClaimResult:
    """Share of attempts that must be accepted and are."""
    return _suite(ctx, right=True)


def wrong_attempts_fail(ctx: ClaimContext) -> ClaimResult:
    """Share of attempts that must be rejected and are accepted."""
    return _suite(ctx, right=False)


def _suite(ctx: ClaimContext, *, right: bool) -> ClaimResult:
    passed, made, wrong = Counter[str](), Counter[str](), []
    for built in _environments(ctx):
        for attempt in attempts(built):
            if attempt.right == right:
                verdict = attempted(built, attempt)
                made[attempt.kind] += 1
                passed[attempt.kind] += verdict.passed
                if verdict.passed != right:
                    wrong.append(f"{built.domain.name}/{built.seed}: {attempt.kind}, {attempt.name}: {verdict.reason}")
    table = Table(
        title="Attempts by kind",
        columns=("kind", "attempts", "accepted"),
        rows=tuple((kind, made[kind], passed[kind]) for kind in sorted(made)),
    )
    details = {"attempts": made.total(), "otherwise": wrong[:20], "tables": [table]}
    return _result(ctx, passed.total() / made.total(), 1.0 if right else 0.0, details)


def rebuilt_byte_by_byte(ctx: ClaimContext) -> ClaimResult:
    """Share of environments that another process with another hash seed builds equally."""
    mine = {f"{built.domain.name}:{built.seed}": built.digest for built in _environments(ctx)}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        input="\n".join(mine),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "20260123"},
    )
    theirs = done.stdout.split()
    same = [one == other for one, other in zip(mine.values(), theirs, strict=True)]
    return _result(ctx, sum(same) / len(same), 1.0, {"environments": len(same)})


def builds_per_second(ctx: ClaimContext) -> ClaimResult:
    """Environments per second of this process's time on a core; the interval is over groups of 25."""
    rates = []
    for name in domain_names():
        factory = _factory(name, "checked")
        factory.build("warm")
        seeds = [f"{ctx.seeds[0]}/{index}" for index in range(_each(ctx))]
        for start in range(0, len(seeds), 25):
            group = seeds[start : start + 25]
            before = time.process_time()
            for seed in group:
                factory.build(seed)
            rates.append(len(group) / (time.process_time() - before))
    found = mean_interval(rates)
    curve = Curve(
        title="Builds",
        across="group",
        up="environments per second",
        x=tuple(range(len(rates))),
        series={"ours": tuple(rates)},
    )
    return ClaimResult(
        ours=found["value"],
        interval=found["interval"],
        baseline=200.0,
        seeds=tuple(ctx.seeds),
        details={"curves": [curve]},
    )


def call_takes_under_a_millisecond(ctx: ClaimContext) -> ClaimResult:
    """Mean milliseconds of a call in a world in memory, over golden chains, with the slowest hundredth."""
    times = []
    for built in _environments(ctx):
        world = built.world()
        for step in built.golden:
            before = time.perf_counter()
            run_step(built.domain, world, step)
            times.append(1e3 * (time.perf_counter() - before))
        world.close()
    found = mean_interval(times)
    details = {
        "calls": len(times),
        "median": sorted(times)[len(times) // 2],
        "p99": sorted(times)[len(times) * 99 // 100],
    }
    return ClaimResult(
        ours=found["value"], interval=found["interval"], baseline=1.0, seeds=tuple(ctx.seeds), details=details
    )


def _each(ctx: ClaimContext) -> int:
    return ENVIRONMENTS[ctx.scale] // len(domain_names())


def _factory(name: str, growth: Growth) -> Factory:
    return Factory(find_domain(name), Recipe(growth=growth))


def _environments(ctx: ClaimContext, *, growth: Growth = "checked", only: str = "") -> Iterator[BuiltTask]:
    for name in (only,) if only else domain_names():
        factory = _factory(name, growth)
        for index in range(_each(ctx)):
            yield factory.build(f"{ctx.seeds[0]}/{index}")


def _result(ctx: ClaimContext, ours: float, baseline: float, details: dict[str, Any]) -> ClaimResult:
    return ClaimResult(ours=ours, baseline=baseline, seeds=tuple(ctx.seeds), details=details)
