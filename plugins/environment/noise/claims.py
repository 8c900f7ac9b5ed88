"""What noise must and must not do, measured on tasks of `environment.domain-graph` over all domains."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from stackloom.core.chat import Message
from stackloom.core.claims import ClaimContext, ClaimResult, Curve, Table
from stackloom.core.slots.environment import Task, ToolError
from stackloom.core.statistics import pass_rate
from stackloom.environments.agent_loop import judge
from stackloom.environments.domains import domain_names
from stackloom.environments.tape import CATALOGUE, HIGHEST, RATES, InjectedFault
from stackloom.plugins.environment.noise.noise import Noise, clean, tape_of

TASKS = {"cpu": 60, "cpu-full": 300}
BASE = "environment.domain-graph"
LEVELS = tuple(range(HIGHEST + 1))
REPEATED = 20
AGAIN = """
import sys
from stackloom.environments.domains import domain_names
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig
from stackloom.plugins.environment.noise.claims import attempt_digest
from stackloom.plugins.environment.noise.config import NoiseConfig
from stackloom.plugins.environment.noise.noise import Noise
base = DomainGraphConfig(domains=list(domain_names()), seed=int(sys.argv[1]))
noise = Noise(NoiseConfig(base=base, level=int(sys.argv[2])))
print(*(attempt_digest(noise, task) for task in noise.tasks("train", int(sys.argv[3]))))
"""


def every_task_can_be_solved(ctx: ClaimContext) -> ClaimResult:
    """Share of tasks that the repairing agent solves, over all levels; beside it, how often a tape was drawn again."""
    solved: list[bool] = []
    rows = []
    for level in LEVELS:
        passed, drawn, turns = [], 0, 0
        for noise, task in _tasks(ctx, level):
            proof = noise.prove(task)
            passed.append(proof.passed and proof.turns <= noise.config.turns)
            drawn += int(tape_of(task).key.rpartition("/")[2])
            turns += proof.turns
        rows.append((level, RATES[level], len(passed), sum(passed), drawn, turns / len(passed)))
        solved += passed
    table = Table(
        title="The repairing agent",
        columns=("level", "noisy events", "tasks", "solved", "tapes drawn again", "messages per task"),
        rows=tuple(rows),
    )
    return _result(ctx, sum(solved) / len(solved), 1.0, {"tables": [table]})


def noise_breaks_who_repairs_nothing(ctx: ClaimContext) -> ClaimResult:
    """Share of tasks at level 4 solved by the right calls alone: no question asked, nothing called again."""
    rates = [pass_rate([_blind(noise, task) for noise, task in _tasks(ctx, level)]) for level in LEVELS]
    curve = Curve(
        title="Tasks solved",
        across="level",
        up="share",
        x=LEVELS,
        series={"the right calls, no repair": tuple(rate["value"] for rate in rates)},
    )
    low, high = rates[-1]["interval"]
    return ClaimResult(
        ours=rates[-1]["value"],
        interval=(low, high),
        baseline=rates[0]["value"],
        seeds=tuple(ctx.seeds),
        details={"curves": [curve]},
    )


def every_kind_occurs(ctx: ClaimContext) -> ClaimResult:
    """Number of kinds that attempts at level 4 meet, by agents that make every call four times over."""
    met = Counter[str]()
    for noise, task in _tasks(ctx, HIGHEST):
        met.update(noise.meeting(task).kinds)
        episode = noise.start(task)
        calls = [call for message in noise.base.demonstration(clean(task)) for call in message.tool_calls]
        for call in calls * 4:  # what was changed is read again, and may then be stale
            try:
                episode.call(call)
            except ToolError:
                continue
        met.update(kind for _, kind in episode.met)
        episode.close()
    table = Table(
        title="Met at level 4",
        columns=("kind", "what happens", "what an agent can do", "times"),
        rows=tuple((kind, *words, met[kind]) for kind, words in CATALOGUE.items()),
    )
    return _result(ctx, sum(met[kind] > 0 for kind in CATALOGUE), len(CATALOGUE), {"tables": [table]})


def attempts_repeat(ctx: ClaimContext) -> ClaimResult:
    """Share of tasks at level 4 whose opening and attempt are the same bytes in another process."""
    seed, count = ctx.seeds[0], REPEATED
    command = [sys.executable, "-c", AGAIN, str(seed), str(HIGHEST), str(count)]
    there = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    ).stdout.split()
    noise = _noise(ctx, HIGHEST, seed)
    here = [attempt_digest(noise, task) for task in noise.tasks("train", count)]
    same = [one == two for one, two in zip(here, there, strict=True)]
    return _result(ctx, sum(same) / len(same), 1.0, {"tasks": count})


def no_fault_is_the_infrastructure(ctx: ClaimContext) -> ClaimResult:
    """Attempts that an injected fault masks, and injected faults that are none by their type; at level 4."""
    faults = wrong = 0
    for noise, task in _tasks(ctx, HIGHEST):
        episode, said = noise.start(task), list[Message]()
        for message in noise.base.demonstration(clean(task)):
            for call in message.tool_calls:
                before = len(episode.met)
                try:
                    episode.call(call)
                except ToolError as refused:
                    injected = any(kind == "T1" for _, kind in episode.met[before:])
                    faults += injected
                    wrong += injected != isinstance(refused, InjectedFault)
            said.append(message)
        reward, _ = judge(episode, said)
        wrong += not reward.valid
        episode.close()
    return _result(ctx, wrong, 0.0, {"injected faults": faults})


def attempt_digest(noise: Noise, task: Task) -> str:
    """Return a hash of a task's messages and of the repairing agent's whole attempt."""
    return hashlib.sha256(repr((task.messages, noise.prove(task).messages)).encode()).hexdigest()


def _blind(noise: Noise, task: Task) -> bool:
    """Whether the demonstrated calls alone, with what the opening says, solve the task."""
    request = noise._request(task)
    opening = noise.meeting(task).opening
    if request and any(item.text not in opening for item in request.known if item not in request.withheld):
        return False  # the calls use what the user has not told
    episode, said = noise.start(task), list[Message]()
    for message in noise.base.demonstration(clean(task)):
        for call in message.tool_calls:
            try:
                episode.call(call)
            except ToolError:
                continue
        said.append(message)
    reward, _ = judge(episode, said)
    episode.close()
    return reward.value == 1.0


def _tasks(ctx: ClaimContext, level: int) -> Iterator[tuple[Noise, Task]]:
    """Yield tasks of every seed, the domains in turn."""
    for seed in ctx.seeds:
        noise = _noise(ctx, level, seed)
        for task in noise.tasks("train", TASKS[ctx.scale] // len(ctx.seeds)):
            yield noise, task


def _noise(ctx: ClaimContext, level: int, seed: int) -> Noise:
    base = {"use": BASE, "domains": list(domain_names()), "seed": seed}
    noise = ctx.component("environment.noise", base=base, level=level)
    assert isinstance(noise, Noise)
    return noise


def _result(ctx: ClaimContext, ours: float, baseline: float, details: dict[str, Any]) -> ClaimResult:
    return ClaimResult(ours=ours, baseline=baseline, seeds=tuple(ctx.seeds), details=details)
