"""The evaluate stage: pass rates on tasks and perplexity on text, each with its 95 per cent interval."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name

from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core.chat import Message
from stackloom.core.generation import Sampling
from stackloom.core.slots.reasoner import Attempt, Solution
from stackloom.core.stages import Evaluate
from stackloom.core.statistics import mean_interval, pass_rate
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.environments.agent_loop import play
from stackloom.run import scoring
from stackloom.run.context import StageContext, write_json
from stackloom.run.quantize import sequences


def run(ctx: StageContext) -> Artifact:
    """Evaluate the model as it is and write `metrics.json`, with every task's outcome for paired comparison."""
    options = ctx.options
    assert isinstance(options, Evaluate)
    model, tokenizer = ctx.load_model()
    results: dict[str, Any] = {}
    if (data := ctx.component("data", tokenizer)) is not None:
        rows = sequences(data, options.sequences, options.sequence_length)
        results["perplexity"] = perplexity(model, rows, ctx)
        if options.compare_to_float:
            results["against_float"] = scoring.compare(model, ctx.load_float_model(), rows, ctx.progress)
        if options.cloze:
            items = scoring.cloze_items(rows, options.cloze, ctx.stage.seed)
            results["cloze"] = scoring.cloze(model, items, ctx.progress)
    if (environment := ctx.component("environment")) is not None:
        results |= asyncio.run(_attempt_all(ctx, options, model, tokenizer, environment))
    values = {"perplexity": results["perplexity"]["value"]} if "perplexity" in results else {}
    values |= {name: results[name]["value"] for name in ("pass_rate", "cloze") if name in results}
    if "against_float" in results:
        values |= {name: found["value"] for name, found in results["against_float"].items()}
    ctx.metrics(1, values)
    with writing(ctx.target, Card(kind="metrics", key=ctx.key, made_by="evaluate", parent=ctx.parent)) as folder:
        write_json(folder / "metrics.json", results)
    return read(ctx.target)


async def _attempt_all(
    ctx: StageContext, options: Evaluate, model: Any, tokenizer: Any, environment: Any
) -> dict[str, Any]:
    reasoner, context = ctx.component("reasoner"), ctx.component("context")
    chat = HFChatTokenizer(tokenizer)
    tasks = environment.tasks(options.split, options.tasks)
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=ctx.stage.seed)
    finished, ended = 0, Counter[str]()

    with Engine(model, tokenizer, in_loop=True) as engine:

        async def attempt(task: Any, index: int, messages: Sequence[Message] | None = None) -> Attempt:
            asked = task if messages is None else replace(task, messages=tuple(messages))
            episode = environment.start(task)
            transcript = await play(
                asked,
                episode,
                engine,
                chat,
                sampling=sampling,
                turns=options.turns,
                key=f"{task.id}/{index}",
                context=context,
            )
            ended[transcript.finish] += 1
            return transcript.attempt(episode)

        async def solve(task: Any) -> Solution:
            nonlocal finished
            if reasoner is None:
                solution = Solution(0, [await attempt(task, 0)])
            else:
                solution = await reasoner.solve(_Attempts(task.messages, partial(attempt, task)))
            finished += 1
            ctx.progress(finished, len(tasks), {})
            return solution

        solutions = await asyncio.gather(*(solve(task) for task in tasks))
    return _summary(tasks, solutions) | {"ended": dict(sorted(ended.items()))}


@dataclass(frozen=True)
class _Attempts:
    """Fulfils `core.slots.reasoner.Attempts`; every attempt starts from the task's own state."""

    question: tuple[Message, ...]
    make: Callable[[int, Sequence[Message] | None], Awaitable[Attempt]]

    async def __call__(self, index: int, messages: Sequence[Message] | None = None, /) -> Attempt:
        return await self.make(index, messages)


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
        "attempts": {
            task.id: {"chosen": solution.chosen, "made": [_told(attempt) for attempt in solution.attempts]}
            for task, solution in zip(tasks, solutions, strict=True)
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


def _told(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt without its messages: enough to ask what another reasoner would have made of it."""
    return {
        "answer": attempt.answer,
        "tokens": attempt.tokens,
        "value": attempt.reward.value,
        "valid": attempt.reward.valid,
        "logprob": attempt.logprob,
    }


def perplexity(model: Any, rows: Sequence[torch.Tensor], ctx: StageContext) -> dict[str, Any]:
    """Return exp of the mean negative log-likelihood per token; the interval treats sequences as independent.

    "token_nll" holds each token's, to five decimals, so that evaluations on the same data can be paired by token.
    """
    means, tokens = [], []
    with torch.inference_mode():
        for number, row in enumerate(rows):
            ids = row[None].to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
            means.append(float(losses.mean()))
            tokens.append([round(loss, 5) for loss in losses.tolist()])
            ctx.progress(number + 1, len(rows), {})
    found = mean_interval(means)
    interval = [math.exp(bound) for bound in found["interval"]] if found["interval"] else None
    value = math.exp(found["value"])
    return {"value": value, "interval": interval, "sequences": len(rows), "nll": means, "token_nll": tokens}
