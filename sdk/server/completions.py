"""`POST /v1/completions`: plain text goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from stackloom.core.generation import Completion, Request
from stackloom.engine.batch import Piece
from stackloom.server.bodies import CompletionBody
from stackloom.server.formats import DONE, envelope, event, text_logprobs, usage
from stackloom.server.pieces import grow
from stackloom.server.serving import Serving


class Completing:
    """One request.

    Args:
        serving: the model.
        body: what is asked.
    """

    def __init__(self, serving: Serving, body: CompletionBody) -> None:
        self._serving, self._body = serving, body
        self._requests: list[Request] = []
        self._head = envelope("text_completion", serving.name)
        self._prompt_tokens = 0

    async def prepare(self) -> None:
        """Check everything that can be checked before the answer begins.

        Raises:
            StackloomError: what is wrong with the request.
            Refused: the server does not take it.
        """
        serving, body = self._serving, self._body
        prompts: list[str | list[int]] = [*body.prompts]
        serving.admit(body, len(prompts) * body.n)
        sampling = serving.sampling(body, body.max_tokens)
        for place, prompt in enumerate(prompts):
            ids = await self._ids(prompt)
            self._prompt_tokens += len(ids)
            request = Request(ids, sampling, top_logprobs=body.logprobs or 0)
            await serving.check(request)
            self._requests += [replace(request, key=f"{place}/{choice}") for choice in range(body.n)]

    async def _ids(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, list):
            return tuple(prompt)
        return tuple(await asyncio.to_thread(lambda: self._serving.engine.tokenizer(prompt)["input_ids"]))

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        pieces: list[list[Piece]] = [[] for _ in self._requests]
        ended: dict[int, Completion] = {}
        async with aclosing(grow(self._serving.engine, self._requests)) as growing:
            async for number, found in growing:
                if isinstance(found, Completion):
                    ended[number] = found
                else:
                    pieces[number].append(found)
        choices = [
            self._choice(number, ended[number].text, ended[number].finish)
            | {"logprobs": self._logprobs(pieces[number], 0)}
            for number in sorted(ended)
        ]
        tokens = sum(len(one.token_ids) for one in ended.values())
        self._serving.count(self._prompt_tokens, tokens)
        return self._head | {"choices": choices, "usage": usage(self._prompt_tokens, tokens)}

    async def events(self) -> AsyncGenerator[str, None]:
        """Yield the answer piece by piece."""
        tokens, offsets = 0, [0] * len(self._requests)
        try:
            async with aclosing(grow(self._serving.engine, self._requests)) as growing:
                async for number, found in growing:
                    if isinstance(found, Completion):
                        yield self._chunk(self._choice(number, "", found.finish) | {"logprobs": None})
                        continue
                    tokens += len(found.token_ids)
                    choice = self._choice(number, found.text, None)
                    yield self._chunk(choice | {"logprobs": self._logprobs([found], offsets[number])})
                    offsets[number] += len(found.text)
        finally:
            self._serving.count(self._prompt_tokens, tokens)
        if self._body.stream_options and self._body.stream_options.include_usage:
            yield event(self._head | {"choices": [], "usage": usage(self._prompt_tokens, tokens)})
        yield DONE

    def _choice(self, number: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "finish_reason": finish}

    def _chunk(self, choice: dict[str, Any]) -> str:
        return event(self._head | {"choices": [choice]})

    def _logprobs(self, pieces: list[Piece], offset: int) -> dict[str, Any] | None:
        return None if self._body.logprobs is None else text_logprobs(pieces, self._serving.token, offset)
