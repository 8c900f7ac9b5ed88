"""Several sequences of one request, as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from stackloom.core.generation import Completion, Request
from stackloom.engine.batch import Piece
from stackloom.engine.engine import Engine


async def grow(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Piece | Completion], None]:
    """Yield (number, piece) as pieces come, and (number, completion) at each end. Closing it frees every row."""
    queue: asyncio.Queue[tuple[int, Piece | Completion | BaseException]] = asyncio.Queue()

    async def follow(number: int, request: Request) -> None:
        stream = engine.stream(request)
        try:
            async for piece in stream:
                queue.put_nowait((number, piece))
            assert stream.completion is not None
            queue.put_nowait((number, stream.completion))
        except Exception as error:  # noqa: BLE001 - raised where the request is answered
            queue.put_nowait((number, error))
        finally:
            await stream.aclose()

    tasks = [asyncio.create_task(follow(number, request)) for number, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            number, found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            left -= isinstance(found, Completion)
            yield number, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
