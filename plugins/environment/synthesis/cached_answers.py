"""Cached answers: what a model said to each question, several times, in a file of JSON lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stackloom.core.chat import Message
from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.generation import ChatModel, ChatRequest, Reply, Sampling, ServerError

SAMPLING = Sampling(temperature=1.0, max_tokens=2048)


@dataclass(frozen=True)
class Cached:
    """A question, its right answer, and what was said to it."""

    question: str
    answer: str
    answers: tuple[str, ...]


def read(path: Path) -> list[Cached]:
    """Return what a file holds.

    Raises:
        ConfigError: there is no such file, or it is empty.
        ArtifactError: a line is not of the form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"cannot be read: {cause}", where=str(path), fix="see cached_answers.collect") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            made = Cached(row["question"], row["answer"], tuple(row["answers"]))
        except (ValueError, TypeError, KeyError, RecursionError) as cause:
            raise ArtifactError(f"line {number} is no question with answers: {cause!r}", where=str(path)) from None
        if not all(isinstance(text, str) for text in (made.question, made.answer, *made.answers)):
            raise ArtifactError(f"line {number}: question and answers are texts", where=str(path))
        found.append(made)
    if not found:
        raise ConfigError("holds no question", where=str(path), fix="see cached_answers.collect")
    return found


async def collect(
    model: ChatModel,
    questions: Sequence[tuple[str, str]],
    path: Path,
    *,
    count: int = 24,
    sampling: Sampling = SAMPLING,
    together: int = 64,
) -> int:
    """Ask a model each question several times and add what it says to a file; questions that stand there are not asked.

    Replies that were cut, and calls that failed, are left out. Only the visible answer is kept, never the reasoning.

    Args:
        model: who is asked.
        questions: (question, right answer) each.
        path: of the file; a question's line is written once all its answers are there.
        count: answers per question; answer i draws with seed + i.
        sampling: of each answer.
        together: calls under way at once.

    Returns:
        how many questions were added.

    Raises:
        ConfigError: what the model refuses.

    Example:
        >>> async with OpenAICompatible("http://127.0.0.1:8000/v1") as model:
        ...     await collect(model, [("What is 6 * 7?", "42")], Path("cached.jsonl"))
        1
    """
    known = {one.question for one in read(path)} if path.exists() and path.stat().st_size else set()
    gate = asyncio.Semaphore(together)

    async def say(question: str, number: int) -> str:
        options = replace(sampling, seed=sampling.seed + number)
        request = ChatRequest((Message("user", question),), sampling=options, key=str(number))
        async with gate:
            try:
                async for piece in model.stream(request):
                    if isinstance(piece, Reply) and piece.finish == "stop":
                        return piece.message.content.strip()
            except ServerError:
                return ""
        return ""

    async def ask(question: str, answer: str) -> None:
        said = await asyncio.gather(*(say(question, number) for number in range(count)))
        row = {"question": question, "answer": answer, "answers": [text for text in said if text]}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    new = [(question, answer) for question, answer in questions if question not in known]
    async with asyncio.TaskGroup() as group:
        for question, answer in new:
            group.create_task(ask(question, answer))
    return len(new)
