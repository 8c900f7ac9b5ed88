"""`ChatEndpoint`: a model behind an OpenAI-compatible server, as a `core.generation.ChatModel`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from stackloom.core.chat import Message, Tool
from stackloom.core.errors import ConfigError, StackloomError
from stackloom.core.generation import ChatReply, ContextFull, Sampling

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
FULL = ("context length", "context_length", "maximum context", "too many tokens", "too long")


class EndpointError(StackloomError):
    """The server cannot be reached or keeps failing; nothing is wrong with the attempt, which must not be scored."""

    acts = "whoever runs the server"


class ChatEndpoint:
    """Talks to `<base_url>/chat/completions`.

    Args:
        base_url: for instance "http://127.0.0.1:8000/v1".
        model: the server's name of the model.
        api_key: sent as a bearer token; empty for servers that want none.
        seconds: most that one request may take.
        retries: how often a request is repeated that failed for the server's reasons.

    Raises:
        ConfigError: the extra `serve`, which brings httpx, is not installed.

    Example:
        >>> async with ChatEndpoint("http://127.0.0.1:8000/v1", "smollm2") as model:
        ...     transcript = await play_chat(task, episode, model, sampling=Sampling(), turns=8, key=task.id)
    """

    def __init__(
        self, base_url: str, model: str, *, api_key: str = "", seconds: float = 120.0, retries: int = 3
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError(
                "a chat endpoint needs httpx", where="endpoint", fix="pip install 'stackloom[serve]'"
            ) from None
        self._model, self._retries, self._failures = model, retries, (httpx.TransportError,)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(base_url=base_url.rstrip("/"), headers=headers, timeout=seconds)

    async def __aenter__(self) -> ChatEndpoint:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def chat(self, messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling, key: str) -> ChatReply:
        """Return the next message of a conversation.

        Raises:
            ContextFull: the server says that the conversation is too long.
            ConfigError: what it refuses otherwise, in its own words.
            EndpointError: it cannot be reached, keeps failing, or answers what is no chat completion.
        """
        answer = await self._post(self._body(messages, tools, sampling))
        try:
            choice = answer["choices"][0]
            raw = choice["message"]
            tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
        except (KeyError, IndexError, TypeError, ValueError):
            raise EndpointError("the answer is no chat completion", where=str(self._client.base_url)) from None
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        try:
            message, errors = Message.from_openai({**raw, "role": "assistant"}), ()
        except ConfigError as wrong:  # a malformed call is the model's, and is shown to it
            message, errors = Message("assistant", str(raw.get("content") or "")), (wrong.reason,)  # type: ignore[assignment]
        return ChatReply(message, tokens, finish, errors)  # type: ignore[arg-type]

    def _body(self, messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [message.to_openai() for message in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if tools:
            body["tools"] = [tool.to_openai() for tool in tools]
        return body

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        where, reason = str(self._client.base_url), ""
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(min(8.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))
            try:
                response = await self._client.post("/chat/completions", json=body)
            except self._failures as cause:
                reason = f"{type(cause).__name__}: {cause}"
                continue
            if response.status_code in RETRIED:
                reason = f"status {response.status_code}"
                continue
            if response.is_success:
                try:
                    answer = response.json()
                except ValueError:
                    raise EndpointError("the answer is no JSON", where=where) from None
                if not isinstance(answer, dict):
                    raise EndpointError("the answer is no chat completion", where=where)
                return answer
            text = response.text[:300]
            if any(words in text.lower() for words in FULL):
                raise ContextFull(f"the server refuses the conversation: {text}", where=where)
            raise ConfigError(f"the server refuses with status {response.status_code}: {text}", where=where)
        raise EndpointError(
            f"no answer after {self._retries + 1} attempts: {reason}", where=where, fix="is it running?"
        )
