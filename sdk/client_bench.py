"""What the client costs above its bare transport: the same replies read as bytes and as a model's pieces."""

from __future__ import annotations

import asyncio
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from stackloom.client.openai_compatible import OpenAICompatible
from stackloom.client.transport import make_http
from stackloom.core.chat import Message
from stackloom.core.devices import find_device
from stackloom.core.errors import EngineError
from stackloom.core.generation import ChatRequest, Reply
from stackloom.plugins.reasoner.heavy_thinking.config import HeavyThinkingConfig
from stackloom.plugins.reasoner.question import Question, Thought

BARS = {8: 1.15, 64: 1.25}  # wall time over the bare transport's, by calls in flight
CANCEL_BAR_SECONDS = 0.05
WORDS, PACE = 32, 0.02  # a reply: tokens, and seconds between two of them, as a server at 50 tokens a second sends
ASK = ChatRequest((Message("user", "6 * 7?"),))
SERVER = """
import asyncio
from stackloom.testing.fake_server import Answer, FakeServer
async def main():
    answers = {{"paced": Answer(("word ",) * {words}, seconds={pace}), "fast": Answer(("word ",) * {words})}}
    async with FakeServer(lambda number, body: answers[body["model"]]) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@contextmanager
def _server() -> Any:
    """A server in its own process, so that its work is not ours."""
    code = SERVER.format(words=WORDS, pace=PACE)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure and return rows (see core.rows.BenchRow).

    Raises:
        EngineError: a reply was lost or is not what was sent.
    """
    repeats = 3 if quick else 9
    with _server() as url:
        rows = [asyncio.run(_compare(url, "paced", flying, repeats)) for flying in BARS]
        rows += [asyncio.run(_compare(url, "fast", flying, repeats)) for flying in BARS]
        rows += [asyncio.run(_branches(url)), asyncio.run(_cancel(url, repeats))]
    return rows


async def _compare(url: str, pace: str, flying: int, repeats: int) -> dict[str, Any]:
    """Time the same calls bare and through the client, alternating."""
    async with make_http() as http:
        model = OpenAICompatible(url, pace, http=http)
        body = model._body(ASK)

        async def bare() -> None:
            async with http.stream("POST", f"{url}/chat/completions", json=body) as response:
                size = 0
                async for piece in response.aiter_raw():
                    size += len(piece)
            if not size:
                raise EngineError("the bare transport lost a reply")

        async def ours() -> None:
            pieces = [piece async for piece in model.stream(ASK)]
            if not isinstance(pieces[-1], Reply) or pieces[-1].message.content != "word " * WORDS:
                raise EngineError("the client lost a reply")

        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for turn in range(repeats + 1):
            for name, call in (("bare", bare), ("ours", ours)):
                took = await _together(call, flying)
                if turn:  # the first turn opens connections
                    times[name].append(took)
    ratio = statistics.median(times["bare"]) / statistics.median(times["ours"])
    case = f"{flying} in flight, {WORDS} tokens, " + (f"{1 / PACE:.0f} a second each" if pace == "paced" else "at once")
    return _row(case, ratio=ratio, bar=1 / BARS[flying], met=ratio >= 1 / BARS[flying], seconds=times["ours"])


async def _together(call: Callable[[], Awaitable[None]], count: int) -> float:
    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(count)))
    return time.perf_counter() - start


async def _branches(url: str) -> dict[str, Any]:
    """256 thinkers at once: how many replies are lost."""
    config = HeavyThinkingConfig(width=256, max_concurrency=256, aggregator="first")
    start = time.perf_counter()
    async with OpenAICompatible(url, "paced") as model:
        events = [event async for event in config.build().think(Question(ASK.messages, model))]
    took = time.perf_counter() - start
    assert isinstance(events[-1], Thought)
    lost = sum(made.message is None for made in events[-1].trajectories)
    return _row(
        "256 branches, replies lost", ratio=None, bar=0, met=lost == 0, seconds=[took], measured=lost, unit="replies"
    )


async def _cancel(url: str, repeats: int) -> dict[str, Any]:
    """From the decision to stop 64 streams until the last connection is closed."""
    seconds = []
    for _ in range(repeats):
        async with OpenAICompatible(url, "paced") as model:
            streams = [model.stream(ASK) for _ in range(64)]
            await asyncio.gather(*(anext(stream) for stream in streams))
            start = time.perf_counter()
            await asyncio.gather(*(stream.aclose() for stream in streams))  # type: ignore[attr-defined]
            seconds.append(time.perf_counter() - start)
    worst = max(seconds)
    return _row(
        "64 streams broken off", ratio=None, bar=CANCEL_BAR_SECONDS, met=worst <= CANCEL_BAR_SECONDS, seconds=seconds
    )


def _row(
    case: str,
    *,
    ratio: float | None,
    bar: float,
    met: bool,
    seconds: list[float],
    measured: float | None = None,
    unit: str = "s",
) -> dict[str, Any]:
    return {
        "name": "client",
        "case": case,
        "ratio": None if ratio is None else round(ratio, 4),
        "bar": round(bar, 4),
        "met": met,
        "floor_fraction": None,
        "error": None,
        "device": find_device("cpu").title,
        "measured": round(statistics.median(seconds), 4) if measured is None else measured,
        "unit": unit,
        "low": round(min(seconds), 4),
        "high": round(max(seconds), 4),
        "runs": len(seconds),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
