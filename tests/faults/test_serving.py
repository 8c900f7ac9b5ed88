"""RELIABILITY 7 on the served engine: clients and thinkers that leave in the middle leave no page, task or file."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn

from stackloom.core.chat import Message
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.engine.streaming import LocalModel
from stackloom.plugins.reasoner.heavy_thinking.config import HeavyThinkingConfig
from stackloom.plugins.reasoner.question import Question
from stackloom.server.app import make_app
from stackloom.server.serving import Limits, Serving
from stackloom.testing import llama_shape, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.faults

RUNS = int(os.environ.get("STACKLOOM_THINKING_RUNS", "50"))
"""STACKLOOM_THINKING_RUNS=1000 is the full count."""
CLIENTS, WIDTH, PAGES = 16, 64, 30


@pytest.fixture(scope="module")
def engine():
    """A tiny engine whose memory holds some of the sequences that are asked for, so that many are preempted."""
    shape = llama_shape(vocab=260, max_positions=512)
    page = shape.layers * 2 * shape.kv_heads * shape.head_dim * 16 * 4
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Engine(tiny_llama(shape), tiny_tokenizer(), max_batch=16, end_tokens=(), cache_bytes=PAGES * page) as found:
        yield found
    torch.set_num_threads(threads)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def settled(engine: Engine) -> None:
    """Wait until the engine has let go of everything, and see that all memory is back."""
    async with asyncio.timeout(10):
        while engine.running or engine.waiting:
            await asyncio.sleep(0.001)
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.001)
    used, kept, capacity = engine.pages
    assert (used, capacity) == (0, PAGES)
    assert kept <= capacity


def test_thinkers_that_are_left_return_every_page(engine) -> None:
    model = LocalModel(engine, HFChatTokenizer(engine.tokenizer))
    config = HeavyThinkingConfig(width=WIDTH, max_tokens=60)

    async def run(number: int) -> None:
        rng = random.Random(number)
        question = Question((Message("user", "x" * rng.randrange(60)),), model)
        events = config.build().think(question)

        async def read() -> None:
            async for _ in events:
                pass

        reading = asyncio.create_task(read())
        await asyncio.sleep(rng.choice((0.0, rng.random() * 0.3)))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await events.aclose()
        await settled(engine)

    for number in range(RUNS):
        asyncio.run(run(number))
    assert engine.preempted


def test_clients_that_leave_return_every_page(engine) -> None:
    serving = Serving("tiny", engine, HFChatTokenizer(engine.tokenizer), Limits(queue=10_000, max_tokens=200))
    server = uvicorn.Server(uvicorn.Config(make_app(serving), port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/chat/completions"
    answered = [0, 0]

    async def client(http: httpx.AsyncClient, rng: random.Random) -> None:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "x" * rng.randrange(60)}],
            "max_tokens": rng.randrange(1, 100),
            "n": rng.randrange(1, 4),
            "stream": rng.random() < 0.5,
        }
        try:
            async with asyncio.timeout(rng.choice((30.0, rng.random() * 0.2))):
                answer = await http.post(url, json=body)
                assert answer.status_code == 200
                answered[0] += 1
        except TimeoutError:
            answered[1] += 1

    async def run(number: int) -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            await asyncio.gather(*(client(http, random.Random(f"{number}/{one}")) for one in range(CLIENTS)))
        await settled(engine)

    try:
        asyncio.run(run(-1))
        before = open_files()
        for number in range(max(1, RUNS // 5)):
            asyncio.run(run(number))
        print(f"{sum(answered)} requests, {answered[1]} of them left before their end")
        assert all(answered)
        deadline = time.monotonic() + 10
        while open_files() > before:  # the server's side of a connection closes in its own time
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        server.should_exit = True
        thread.join()
