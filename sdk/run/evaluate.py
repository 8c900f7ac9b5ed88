"""The evaluate stage: pass rates on tasks and perplexity on text, each with its 95 per cent interval."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name

from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core.generation import Sampling
from stackloom.core.slots.reasoner import Attempt, Solution
from stackloom.core.stages import Evaluate
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.environments.agent_loop import play
from stackloom.run.context import StageContext, write_json
from stackloom.run.quantize import sequences


def run(ctx: StageContext) -> Artifact:
    """Evaluate the model as it is and write `metrics.json`, with every task's outcome for paired comparison."""
    options = ctx.options
    assert isinstance(options, Evaluate)
    model, tokenizer = ctx.load_model()
    results: dict[str, Any] = {}
    if (data := ctx.component("data", tokenizer)) is not None:
        results["perplexity"] = perplexity(model, sequences(data, options.sequences, options.sequence_length), ctx)
    if (environment := ctx.component("environment")) is not None:
        results |= asyncio.run(_attempt_all(ctx, options, model, tokenizer, environment))
    values = {"perplexity": results["perplexity"]["value"]} if "perplexity" in results else {}
    values |= {"pass_rate": results["pass_rate"]["value"]} if "pass_rate" in results else {}
    ctx.metrics(1, values)
    with writing(ctx.target, Card(kind="metrics", key=ctx.key, made_by="evaluate", parent=ctx.parent)) as folder:
        write_json(folder / "metrics.json", results)
    return read(ctx.target)


async def _attempt_all(
    ctx: StageContext, options: Evaluate, model: Any, tokenizer: Any, environment: Any
) -> dict[str, Any]:
    reasoner = ctx.component("reasoner")
    chat = HFChatTokenizer(tokenizer)
    tasks = environment.tasks(options.split, options.tasks)
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=ctx.stage.seed)
    finished = 0

    with Engine(model, tokenizer) as engine:

        async def attempt(task: Any, index: int) -> Attempt:
            episode = environment.start(task)
            transcript = await play(
                task, episode, engine, chat, sampling=sampling, turns=options.turns, key=f"{task.id}/{index}"
            )
            return transcript.attempt(episode)

        async def solve(task: Any) -> Solution:
            nonlocal finished
            if reasoner is None:
                solution = Solution(0, [await attempt(task, 0)])
            else:
                solution = await reasoner.solve(lambda index: attempt(task, index))
            finished += 1
            ctx.progress(finished, len(tasks), {})
            return solution

        solutions = await asyncio.gather(*(solve(task) for task in tasks))
    return _summary(tasks, solutions)


def _summary(tasks: Sequence[Any], solutions: Sequence[Solution]) -> dict[str, Any]:
    chosen = [solution.attempts[solution.chosen] for solution in solutions]
    valid = [attempt.reward.valid for attempt in chosen]
    passed = [attempt.reward.value >= 1.0 for attempt in chosen]
    kinds = sorted({task.kind for task in tasks})
    return {
        "pass_rate": pass_rate([ok for ok, counts in zip(passed, valid, strict=True) if counts]),
        "masked": valid.count(False),
        "by_kind": {
            kind: pass_rate(
                [ok for task, ok, counts in zip(tasks, passed, valid, strict=True) if task.kind == kind and counts]
            )
            for kind in kinds
        },
        "tokens": sum(attempt.tokens for solution in solutions for attempt in solution.attempts),
        "tasks": {
            task.id: {"kind": task.kind, "passed": ok, "valid": counts}
            for task, ok, counts in zip(tasks, passed, valid, strict=True)
        },
        "transcripts": [
            {
                "task": task.id,
                "messages": [asdict(message) for message in (*task.messages, *attempt.messages)],
                "reward": asdict(attempt.reward),
            }
            for task, attempt in list(zip(tasks, chosen, strict=True))[:20]
        ],
    }


def pass_rate(passed: Sequence[bool]) -> dict[str, Any]:
    """Return the share of passes with its 95 per cent Wilson interval, which holds for small counts and at 0 and 1."""
    count = len(passed)
    if not count:
        return {"value": None, "interval": None, "count": 0}
    share, z = sum(passed) / count, 1.959963984540054
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return {"value": share, "interval": [max(0.0, centre - half), min(1.0, centre + half)], "count": count}


def paired_difference(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the second minus the first pass rate on tasks that both attempted, with its paired 95 per cent interval.

    Args:
        first, second: the "tasks" of two evaluations.
    """
    shared = [task for task in first if task in second and first[task]["valid"] and second[task]["valid"]]
    return mean_interval([float(second[task]["passed"]) - float(first[task]["passed"]) for task in shared])


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean with its normal 95 per cent interval; None below two values."""
    count = len(values)
    if count < 2:
        return {"value": values[0] if values else None, "interval": None, "count": count}
    mean = math.fsum(values) / count
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return {
        "value": mean,
        "interval": [mean - 1.959963984540054 * spread, mean + 1.959963984540054 * spread],
        "count": count,
    }


def perplexity(model: Any, rows: Sequence[torch.Tensor], ctx: StageContext) -> dict[str, Any]:
    """Return exp of the mean negative log-likelihood per token; the interval treats sequences as independent."""
    means = []
    with torch.inference_mode():
        for number, row in enumerate(rows):
            ids = row[None].to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            means.append(float(F.cross_entropy(logits, ids[0, 1:])))
            ctx.progress(number + 1, len(rows), {})
    found = mean_interval(means)
    interval = [math.exp(bound) for bound in found["interval"]] if found["interval"] else None
    return {"value": math.exp(found["value"]), "interval": interval, "sequences": len(rows), "nll": means}
